"""`vpo serve`: a prompt optimizer behind an OpenAI-compatible HTTP server on this machine.

Belongs here: the protocol, batching of requests, the application and its process. Does not belong here: what an
optimizer writes or refuses (resources/prompt_optimizer.py).
"""
