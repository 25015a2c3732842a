"""Keys of train.yaml for what a lab brings to a run: its environment."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

NAMES = ("light", "heavy", "infer", "none")
ENGINES = ("auto", "docker", "podman")
_REQUIREMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\s*(\[[^\[\]]*\])?\s*([=<>!~@;(].*)?")


def _requirement(value: str) -> str:
    """One line of a requirement file that names a package, and no option of uv's."""
    if not value.isprintable() or not _REQUIREMENT.fullmatch(value):
        raise ValueError("expected a package as pip takes it, for instance hydra-core or lightning==2.6.1")
    return value


def _file(value: str) -> str:
    if not value.isprintable() or value.startswith(("-", "/", "~")) or ".." in value.split("/"):
        raise ValueError("expected the path of a file in the project")
    return value


def _engine(value: str) -> str:
    """The name of a container engine, or the absolute path of one."""
    if value not in ENGINES and not (value.startswith("/") and value.isprintable()):
        raise ValueError(f"expected {', '.join(ENGINES)}, or the absolute path of one of the two, found {value!r}")
    return value


Image = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,511}$")]
"""A container image as docker and podman name it; nothing that could be read as an option."""
Engine = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_engine)]
Requirement = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_requirement)]
File = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_file)]
Extra = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")]


class OwnEnvironment(BaseModel):
    """Packages of your own: exactly one of packages, requirements and lock."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), defer_build=True)

    packages: tuple[Requirement, ...] = Field(
        (), max_length=500, description="Packages on top of light, as pip takes them: [lightning==2.6.1, hydra-core]."
    )
    requirements: File | None = Field(None, description="A requirement file of the project, with what it includes.")
    lock: File | None = Field(None, description="A uv.lock of the project, with the pyproject.toml beside it.")
    extras: tuple[Extra, ...] = Field((), max_length=50, description="With lock: extras of the project to install.")
    unproven: tuple[Extra, ...] = Field(
        (), max_length=500, description="Packages that are not imported to prove that what was built works."
    )

    @field_validator("packages", "extras", "unproven", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Within a union strict mode takes no list, which is what YAML gives, for a tuple."""
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("packages", "requirements", "lock") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of packages, requirements and lock is needed: found {found}")
        if self.extras and not self.lock:
            raise ValueError("extras belong to lock; in packages an extra is written lightning[extra]")
        return self

    @property
    def what(self) -> str:
        """The environment in a word or two for people."""
        return self.requirements or self.lock or f"packages {', '.join(self.packages)}"


def _meant(value: Any) -> Any:
    """A file's name alone is the most likely slip."""
    if isinstance(value, str) and value not in NAMES:
        kind = "lock" if value.endswith(".lock") else "requirements" if value.endswith(".txt") else ""
        meant = f"{{{kind}: {value}}}" if kind else "{packages: [NAME]}"
        raise ValueError(f"expected light, heavy, infer, none or a mapping such as {meant}, found {value!r}")
    return value


Environment = Annotated[
    Annotated[Literal["light", "heavy", "infer", "none"], Tag("name")] | Annotated[OwnEnvironment, Tag("own")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "own"),
    BeforeValidator(_meant),
]
