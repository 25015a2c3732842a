"""An endpoint whose model is an input of the stage: served on the node itself, for as long as the stage takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nexa_dist.errors import UsageError
from nexa_dist.stages.endpoint_config import INPUT, EndpointConfig
from nexa_dist.stages.references import model_in
from nexa_dist.stages.serve.engines import choose
from nexa_dist.stages.serve.server import api_of, serving


def refuse(config: EndpointConfig, inputs: Mapping[str, Path], name: str) -> None:
    """Raises UsageError for `url: input` without the input `name`, or with a model that takes no chats."""
    if config.url != INPUT:
        return
    if name not in inputs:
        raise UsageError(f"endpoint.url is input, and there is no input {name}", hint=f"inputs: {{{name}: run:RUN}}")
    if api_of(model_in(inputs[name], f"inputs.{name}")) != "chat":
        raise UsageError(f"inputs.{name}: the model has no chat template", hint="put chat_template.jinja beside it")
    choose("auto")


@contextlib.contextmanager
def at_hand(
    config: EndpointConfig, inputs: Mapping[str, Path], name: str, stop: Callable[[], bool]
) -> Iterator[EndpointConfig | None]:
    """The endpoint with the address of its server, started if it is an input; None when it was stopped before."""
    if config.url != INPUT:
        yield config
        return
    engine, model = choose("auto"), model_in(inputs[name], f"inputs.{name}")
    print(f"{name}: {engine.why}", flush=True)
    # A line for every request would bury the stage's own.
    with serving(engine, model, name=config.model, stop=stop, quiet=True) as server:
        yield config.model_copy(update={"url": server.url, "model": server.name}) if server else None
