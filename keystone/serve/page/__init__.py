"""The operator's page: what the archive says, drawn, with an audit and a way back; same server, no build step."""

from keystone.serve.page.routes import OPEN_PATHS, PageSettings, page_routes

__all__ = ["OPEN_PATHS", "PageSettings", "page_routes"]
