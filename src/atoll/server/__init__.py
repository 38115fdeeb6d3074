"""HTTP over one engine: LoRAX's dialect and OpenAI's.

app        create_app puts the parts together
lorax      /, /generate, /generate_stream
openai     /v1/models, /v1/completions, /v1/chat/completions (openai_bodies: what they take)
keys/      who may ask, how much, and what they used: keys, limits, usage and the guard at the door
access     one log line a request; meter: what a request has used; connections: slow and too many ones
prepare    an ask in nobody's dialect -> adapter, prompt ids (prompts) and sampling; no asyncio, `atoll run` uses it too
gateway    open requests; carries events from the step thread to the event loop, aborts what nobody reads
streaming  server-sent events, clients that leave, readers that are too slow
errors     every error in the dialect of its path; body_limit: bodies that are too large or too slow
metrics    Prometheus: lorax_* and atoll_*
"""
