"""Models of other engines, behind any endpoint that speaks OpenAI's or Ollama's API; nothing they say is trusted."""

from keystone.endpoints.address import Address, parse_address
from keystone.endpoints.client import ClientLimits, EndpointClient
from keystone.endpoints.credentials import token_for
from keystone.endpoints.dialects import Answer, EndpointModel, Question
from keystone.endpoints.facts import EndpointFacts, describe

__all__ = [
    "Address",
    "Answer",
    "ClientLimits",
    "EndpointClient",
    "EndpointFacts",
    "EndpointModel",
    "Question",
    "describe",
    "parse_address",
    "token_for",
]
