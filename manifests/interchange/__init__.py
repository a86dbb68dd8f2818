"""Documents in other people's formats: CycloneDX, and what a model card of the Hub claims."""
