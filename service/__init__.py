"""The control plane: REST API, live events, page and command line. Never imports torch."""
