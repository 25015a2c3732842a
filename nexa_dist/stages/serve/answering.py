"""The stage serve: a model served, asked, and ended; serve.json has the answers."""

from __future__ import annotations

import json

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.references import model_in
from nexa_dist.stages.serve.config import ServeConfig
from nexa_dist.stages.serve.engines import choose
from nexa_dist.stages.serve.server import api_of, serving
from nexa_dist.stages.whole import whole

INPUT = "model"


def prepare(config: ServeConfig, env: StageEnv) -> None:
    """Refuse an input that is no model, and a machine that can serve nothing."""
    if INPUT not in env.inputs:
        raise UsageError(f"inputs: {INPUT} is missing", hint=f"inputs: {{{INPUT}: run:RUN}}")
    api_of(model_in(env.inputs[INPUT], f"inputs.{INPUT}"))
    choose(config.engine)


def run(config: ServeConfig, env: StageEnv) -> int:
    """Returns 0, or 143 after SIGTERM. Raises NexaError when the server does not answer."""
    engine = choose(config.engine)
    model = model_in(env.inputs[INPUT], f"inputs.{INPUT}")
    with serving(
        engine, model, name=config.name, max_model_len=config.max_model_len, startup_s=config.startup_s,
        stop=env.stop, told=lambda line: print(line, flush=True),
    ) as server:  # fmt: skip
        if server is None:
            return EXIT_STOPPED
        answers = []
        for number, prompt in enumerate(config.prompts, 1):
            if env.stop():
                return EXIT_STOPPED
            answers.append(server.smoke(prompt, config.max_tokens))
            env.report(number, len(config.prompts))
        api = server.api
    seconds = [answer.pop("seconds") for answer in answers]  # the same model has the same output
    with whole(env.output / "serve.json") as scratch:
        scratch.write_text(json.dumps({"engine": engine.name, "api": api, "answers": answers}, indent=2) + "\n")
    env.note(counts={"answers": len(answers)}, engine=engine.name, why=engine.why, seconds_an_answer=seconds)
    return EXIT_OK
