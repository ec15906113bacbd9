"""Who may use the service: tokens, browser sessions, roles, and what guards the requests.

tokens.py, sessions.py   what is stored: hashes only
callers.py               roles, and whose job a caller may control; pure
attempts.py              how often an address may fail; pure
authenticator.py         a request's credentials → its caller
middleware.py            no request passes without a caller
dependencies.py          what a route asks of its caller
binding.py               where the service may listen
"""
