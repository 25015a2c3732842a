"""Schema of cluster.yaml: your own hosts, or hosts to be provisioned. One model takes both forms."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from nexa_dist.config.fields import (
    ZONE_PATTERN,
    Ami,
    BucketName,
    Cidr,
    Endpoint,
    HostKeyText,
    HostName,
    ImageDigest,
    LocalPath,
    MeshCidr,
    Name,
    NodePath,
    Owner,
    Port,
    Price,
    Program,
    Region,
    ReservationId,
    StackVariables,
    StatePlace,
    SubnetId,
    Tags,
    User,
    VpcId,
)
from nexa_dist.config.parts.notify import Notify
from nexa_dist.config.parts.slurm import SlurmConfig
from nexa_dist.config.rules import REQUIRED, fault, together
from nexa_dist.model import Provider, RdzvBackend
from nexa_dist.traits import TRAITS, Traits

MAX_NODES = 64
MAX_GPUS = 64

_FORMS: list[Any] = [
    {"required": ["cluster"]},
    *(
        {"required": ["name", "provider", *needed], "properties": {"provider": {"const": provider}}}
        for provider, needed in REQUIRED.items()
        if provider != "static"
    ),
]
"""Combinations of keys that a file may have, for editors."""


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Host(_Section):
    """One machine of your own, reached by ssh."""

    host: HostName = Field(description="Address or name that ssh can reach: IPv4, IPv6 or a host name.")
    gpus: int = Field(
        ge=1,
        le=MAX_GPUS,
        description="Ranks (processes) on this host, one a GPU; 1 to 64.",
    )
    name: Name | None = Field(
        None,
        description="Name of the node; n0, n1, … in list order if left out.",
    )
    user: User | None = Field(None, description="Login name; ssh's own default if left out.")
    port: Port = Field(22, description="Port of sshd, 1 to 65535.")
    host_key: HostKeyText | None = Field(
        None,
        description="Fingerprint (SHA256:…) or public key (ssh-ed25519 AAAA…) of its sshd, which nexa provision "
        "adopts; if left out the one in your known_hosts, else you are asked.",
    )
    price_usd_per_hour: Price = Field(0.0, description="What this host costs, in US dollars an hour.")


class Offer(_Section):
    """One thing that may be rented."""

    type: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,30}\.[a-z0-9-]{1,30}$")] = Field(
        description="Instance type, for example g6e.12xlarge."
    )
    zone: Annotated[str, StringConstraints(pattern=ZONE_PATTERN)] | None = Field(
        None,
        description="Availability zone, for example us-east-1a; any zone if left out.",
    )


def _offers_kind(value: Any) -> str:
    return "cheapest" if isinstance(value, str) else "list"


Offers = Annotated[
    Annotated[Literal["cheapest"], Tag("cheapest")]
    # strict=False: strict mode takes no list, which is what YAML gives, for a tuple.
    | Annotated[
        tuple[Offer, ...],
        Field(strict=False, min_length=1, max_length=MAX_NODES),
        Tag("list"),
    ],
    Discriminator(_offers_kind),
]


class ClusterConfig(_Section):
    """A cluster: either your own hosts (`cluster`), or hosts that a provider makes (`provider`, `nodes`)."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _FORMS})

    name: Name = Field(
        description="Name of the cluster: a-z, 0-9 and '-', at most 32. With `cluster`, the file's name if left out."
    )
    provider: Provider = Field(
        "static",
        description="Who makes the hosts: aws, local (this machine), stack (your own Terraform stack, "
        "docs/PROVIDERS.md), slurm (a job's allocation, docs/SLURM.md), or static (your own hosts).",
    )
    stack: LocalPath | None = Field(
        None, description="Folder of your own Terraform stack; a relative path starts at this file's folder."
    )
    variables: StackVariables = Field(
        {}, description="Variables of the stack beside those that nexa gives it. No secrets: TF_VAR_NAME has those."
    )
    slurm: SlurmConfig | None = Field(
        None, description="What the allocation asks of Slurm. Only with provider slurm; `nodes` stands beside it."
    )
    cluster: Annotated[tuple[Host, ...], Field(strict=False, min_length=1, max_length=MAX_NODES)] = Field(
        (), description="Your own hosts, in rank order: rank 0 is on the first."
    )
    nodes: int | None = Field(None, ge=1, le=MAX_NODES, description="Number of nodes to make, 1 to 64.")
    gpus_per_node: int | None = Field(
        None,
        ge=1,
        le=MAX_GPUS,
        description="Ranks (processes) on each node, 1 to 64. With provider local they run on the CPU.",
    )
    backend: Literal["torch.distributed"] = Field("torch.distributed", description="What joins the ranks.")
    rdzv: Endpoint | None = Field(
        None,
        description="Rendezvous host:port on the first host; a free port of it if left out. Own hosts only.",
    )
    rdzv_port: Port | None = Field(
        None,
        description="Rendezvous port on the first node, 1 to 65535; a free one if left out.",
    )
    rdzv_backend: RdzvBackend = Field(
        "static",
        description="How torchrun's agents meet. Ranks follow the order of the nodes with both.",
    )
    mesh: Literal["tailscale", "wireguard", "none"] = Field(
        "none",
        description="Overlay network of the nodes: tailscale, wireguard or none. Not with provider local.",
    )
    mesh_cidr: MeshCidr | None = Field(
        None, description="Private IPv4 network of a wireguard mesh; 10.213.0.0/24 if left out. Free on every node."
    )
    market: Literal["spot", "on_demand", "spot_then_on_demand"] = Field(
        "spot", description="How instances are bought. Only with provider aws."
    )
    offers: Offers = Field(
        "cheapest",
        description="What may be rented, in order of preference, or cheapest. Only with provider aws.",
    )
    max_price_usd_per_hour: Price | None = Field(
        None,
        description="Most that one node may cost, in US dollars an hour. Only with provider aws.",
    )
    region: Region | None = Field(
        None, description="AWS region; that of the offers' zones if left out, else AWS_REGION. One a cluster."
    )
    owner: Owner | None = Field(
        None,
        description="Value of the tag nexa:owner, by which what is yours is found; your AWS identity if left out.",
    )
    ssh_from: Annotated[tuple[Cidr, ...], Field(strict=False, min_length=1, max_length=16)] | None = Field(
        None,
        description="IPv4 networks that may reach sshd on the nodes, /8 at the widest; NEXA_SSH_FROM if left out.",
    )
    user: User = Field("ubuntu", description="Login name of the machine image. Only with provider aws.")
    ami: Ami | None = Field(
        None,
        description="Machine image id, or the SSM parameter that holds it; the newest Deep Learning Base image "
        "(Ubuntu 24.04) if left out, resolved once for the life of a cluster.",
    )
    vpc: VpcId | None = Field(None, description="An existing VPC to make subnets in; one of its own if left out.")
    vpc_cidr: Cidr | None = Field(
        None, description="IPv4 network of the nodes, /16 to /20; with vpc a free part of it, and then required."
    )
    subnets: Annotated[tuple[SubnetId, ...], Field(strict=False, min_length=1, max_length=16)] | None = Field(
        None,
        description="Subnets of yours to put the nodes into, of one VPC; the first of a zone that has room. In private "
        "ones nodes have private addresses alone: this machine reaches them by VPN, peering or from within.",
    )
    placement_group: bool | None = Field(
        None, description="Nodes close together, in a cluster placement group; several are, if left out."
    )
    capacity_reservation: ReservationId | None = Field(
        None,
        description="Capacity that is reserved for you: cr-… (a capacity reservation) or cb-… (a Capacity Block). It "
        "says instance type and zone.",
    )
    tags: Tags = Field(
        default_factory=dict,
        description="Tags of your own on everything that is made, such as CostCenter. Name and nexa:… are ours.",
    )
    volume_gb: int = Field(200, ge=50, le=16_384, description="Size of each node's root disk, in GB (gp3, encrypted).")
    efa: bool = Field(False, description="Elastic Fabric Adapters, on the instance types that have them.")
    bucket: BucketName | None = Field(
        None,
        description="S3 bucket for what outlives the nodes: made if it is not there, kept by teardown.",
    )
    wait_for_capacity_minutes: float = Field(
        0.0,
        ge=0,
        le=10_080,
        description="How long to go on asking when every offer is refused, in minutes; with provider slurm how long "
        "the job may wait in the queue, a day if left out.",
    )
    state: StatePlace | None = Field(
        None,
        description="s3://bucket/prefix for Terraform's state, locked, for teams; in the cluster's folder if left out.",
    )
    price_usd_per_hour: Price | None = Field(
        None,
        description="What one node costs, in US dollars an hour. For own hosts it stands with each host.",
    )
    budget_usd: Annotated[float, Field(gt=0, le=10_000_000)] | None = Field(
        None,
        description="Most that the cluster may cost in all, in US dollars. Before it is reached the run is stopped "
        "with a checkpoint; every node has it as a deadline of its own too.",
    )
    on_budget: Literal["teardown", "stop"] = Field(
        "teardown", description="When the budget is used up: give the nodes back, or leave them to their deadline."
    )
    on_failure: Annotated[str, StringConstraints(pattern=r"^(keep|teardown|keep [1-9][0-9]{0,3}m)$")] = Field(
        "keep",
        description="When a run has failed: keep the nodes, give them back (teardown), or keep them for so many "
        "minutes (keep 20m), after which they end by themselves.",
    )
    idle_minutes: Annotated[float, Field(ge=1, le=10_080)] | None = Field(
        None, description="A node on which nothing trains for so long ends by itself."
    )
    lease_minutes: Annotated[float, Field(ge=2, le=10_080)] | None = Field(
        None,
        description="Nodes end by themselves when no controller (nexa run, attach) has been heard of for so long.",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        le=8760,
        description="The nodes end by themselves after so many hours.",
    )
    boot_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="Longest wait for a node to answer after it was made, in seconds.",
    )
    python: Program = Field("python3", description="Python of the training on your own hosts: name or path.")
    ssh_config: LocalPath | None = Field(
        None,
        description="ssh_config file for your own hosts; a relative path starts at this file's folder.",
    )
    system_changes: bool = Field(
        False,
        description="Let nexa provision change the system of your own hosts (packages, driver, limits), as root or by "
        "sudo. Without it all that it adds lies in scratch, shared and durable, and teardown removes it.",
    )
    containers: bool = Field(
        False,
        description="Docker with NVIDIA's container toolkit on nodes with GPUs. On own hosts only with system_changes.",
    )
    images: Annotated[tuple[ImageDigest, ...], Field(strict=False, max_length=64)] = Field(
        (), description="Container images that every node pulls beforehand, each as NAME@sha256:DIGEST."
    )
    notify: Annotated[tuple[Notify, ...], Field(strict=False, max_length=16)] = Field(
        (), description="Who is told of the end of a run, of failures, money, deadlines, notices and new nodes."
    )
    scratch: NodePath | None = Field(None, description="NEXA_SCRATCH on the nodes: fast, lost with the node.")
    shared: NodePath | None = Field(None, description="NEXA_SHARED on the nodes: caches.")
    durable: NodePath | None = Field(None, description="NEXA_DURABLE on the nodes: what outlives them.")

    @property
    def traits(self) -> Traits:
        return TRAITS[self.provider]

    @property
    def gpus(self) -> tuple[int, ...]:
        """Ranks on each node, in rank order."""
        return tuple(host.gpus for host in self.cluster) or (self.gpus_per_node or 0,) * (self.nodes or 0)

    @property
    def node_names(self) -> tuple[str, ...]:
        if not self.cluster:
            return tuple(f"n{index}" for index in range(self.nodes or 0))
        return tuple(host.name or f"n{index}" for index, host in enumerate(self.cluster))

    @property
    def node_usd_per_hour(self) -> float | None:
        """Price of one node where the file says one: for itself, or by its GPUs."""
        if self.slurm is not None:
            return self.slurm.usd_per_gpu_hour * (self.gpus_per_node or 0)
        return self.price_usd_per_hour

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check what keys mean together even when single keys are wrong: one reading shows all."""
        faults = list(together(data, cls.model_fields)) if isinstance(data, dict) else []
        try:
            config = handler(data)
        except ValidationError as error:
            fields = [
                InitErrorDetails(type=e["type"], loc=e["loc"], input=e["input"], ctx=e.get("ctx", {}))
                if e["type"] != "value_error"
                else fault(e["loc"], str(e["ctx"]["error"]), getattr(e["ctx"]["error"], "hint", ""), e["input"])
                for e in error.errors(include_url=False)
            ]
            faults = [*fields, *faults]
        if faults:
            raise ValidationError.from_exception_data("cluster", faults)
        return config
