"""The limits of the HTTP service as options: their names, defaults, bounds and help texts."""

from __future__ import annotations

from dataclasses import dataclass

from charwright.schema import Config, option


@dataclass(frozen=True)
class ServiceConfig(Config):
    """The limits of the HTTP service. A text is one completion: a request for several prompts or `n` has several."""

    max_body_bytes: int = option(2 << 20, "Largest body of a request, in bytes.", minimum=1024, maximum=1 << 30)
    max_prompt: int = option(20_000, "Longest prompt, in characters.", minimum=1, maximum=1_000_000)
    max_tokens: int = option(10_000, "Longest continuation, in characters.", minimum=1, maximum=10_000_000)
    max_n: int = option(16, "Most texts for one prompt (n).", minimum=1, maximum=65536)
    max_prompts: int = option(16, "Most prompts in one request.", minimum=1, maximum=65536)
    max_per_caller: int = option(
        128, "Most texts of one caller at a time; a caller is an API key, or an address without keys.", minimum=1
    )
    max_request: int = option(
        400_000,
        "Most characters in the answer to one request: of all its texts, with the prompts for echo, and once more for"
        " each score of a character.",
        minimum=1,
    )
    max_connections: int = option(1000, "Most open connections, besides probes.", minimum=1, maximum=1_000_000)
    max_waiting: int = option(256, "Most texts that wait for their turn, for each model.", minimum=0)
    wait_s: float = option(10.0, "Longest wait of a request for its turn, in seconds.", above=0, maximum=3600)
    total_s: float = option(600.0, "Longest time for a request, in seconds.", above=0, maximum=86_400)
    idle_s: float = option(30.0, "Longest wait for a client to send or to read, in seconds.", above=0, maximum=3600)
    drain_s: float = option(
        30.0, "Longest wait for the requests in progress when the service ends, in seconds.", minimum=0, maximum=3600
    )
