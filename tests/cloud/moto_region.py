"""moto with everything added: one `World` holds what the patches share, and takes them back at its end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from moto import settings
from moto.core.base_backend import BackendDict
from moto.ec2 import utils
from moto.ec2.models import EC2Backend, ec2_backends, elastic_ip_addresses, elastic_network_interfaces
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instances import Instance
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.ec2.responses import EC2Response
from moto.iam.responses import IamResponse
from moto.s3.models import FakeBucket
from moto.servicequotas.models import ServiceQuotasBackend
from moto.ssm.models import ParameterDict

from tests.cloud import moto_groups, moto_mends, moto_profiles, moto_quotas, moto_reservations, moto_spot
from tests.cloud.faults import FaultBook
from tests.cloud.moto_groups import groups_of
from tests.cloud.moto_images import Images, captures, loads_images
from tests.cloud.moto_launch import Launch
from tests.cloud.moto_life import Life
from tests.cloud.moto_prices import Prices, price_history
from tests.cloud.rights import Rights
from tests.cloud.types import Hosts, Pace


@dataclass
class World:
    """What the emulated region knows beside moto's own backends."""

    life: Life
    faults: FaultBook
    prices: Prices
    images: Images
    stack: ExitStack
    rights: Rights = field(default_factory=Rights)

    def close(self) -> None:
        self.stack.close()


def open_world(hosts: Hosts, pace: Pace) -> World:
    """Empties moto and patches it. One world at a time in a process: moto's backends are the process's."""
    if getattr(open_world, "busy", False):
        raise RuntimeError("This process serves an emulated region already; close that one first.")
    BackendDict.reset()
    stack = ExitStack()
    world = World(Life(hosts, pace, Instance.terminate), FaultBook(), Prices(time.time()), Images(), stack)
    hosts.on_off = world.life.powered_off
    patch_instances(world)
    patch_answers(world)
    patch_models(world)
    vars(open_world)["busy"] = True
    stack.callback(vars(open_world).pop, "busy", None)
    return world


def patch_instances(world: World) -> None:
    life, plain_stop, plain_start = world.life, Instance.stop, Instance.start
    launch = Launch(life, world.faults, world.prices, EC2Response.run_instances)

    def dead(instance_id: str) -> bool:
        return instance_id in life.machines and life.machines[instance_id].dead

    put(world, EC2Response, "run_instances", moto_mends.answers_token_once(launch.run))
    put(world, Instance, "terminate", lambda self: life.terminate(self))
    put(world, Instance, "stop", lambda self: life.stop(self, plain_stop))
    put(world, Instance, "start", lambda self: life.start(self, plain_start))
    put(world, Instance, "instance_status", moto_mends.reports_death(vars(Instance)["instance_status"], dead))
    put(world, Instance, "spot_instance_request_id", None)
    world.stack.enter_context(patch.dict(utils.filter_dict_attribute_mapping, moto_mends.INSTANCE_FILTERS))


def patch_answers(world: World) -> None:
    """Calls that moto lacks, or answers in another way than EC2."""
    for name, action in {**moto_groups.ACTIONS, **moto_reservations.ACTIONS, **moto_spot.ACTIONS}.items():
        put(world, EC2Response, name, action)
    for name, listing in moto_profiles.ACTIONS.items():
        put(world, IamResponse, name, listing)
    quota = moto_quotas.knows_ec2(ServiceQuotasBackend.get_service_quota)
    put(world, ServiceQuotasBackend, "get_service_quota", quota)
    put(world, EC2Response, "terminate_instances", moto_mends.terminate_instances)
    put(world, EC2Response, "describe_spot_price_history", price_history(world.prices))
    for name, wrap in (
        ("create_launch_template", moto_mends.keeps_template_clean),
        ("create_launch_template", moto_mends.answers_token_once),
        ("describe_launch_templates", moto_mends.describes_all_templates),
        ("describe_key_pairs", moto_mends.by_key_id),
        ("delete_key_pair", moto_mends.by_key_id),
        ("delete_security_group", moto_mends.keeps_default_group),
        ("modify_instance_attribute", moto_mends.modifies_shutdown),
    ):
        put(world, EC2Response, name, wrap(getattr(EC2Response, name)))


def patch_models(world: World) -> None:
    addresses = moto_mends.Addresses()
    put(world, elastic_network_interfaces, "random_public_ip", addresses.take)
    put(world, elastic_ip_addresses, "random_ip", addresses.take)
    put(world, TaggedEC2Resource, "get_tags", moto_mends.get_tags)
    put(world, NetworkInterface, "attachment", moto_mends.tells_card(vars(NetworkInterface)["attachment"]))
    put(world, NetworkInterface, "association", moto_mends.none_when_empty(vars(NetworkInterface)["association"]))
    put(world, SecurityGroupRule, "description", property(moto_mends.rule_description))
    put(world, FakeBucket, "get_permission", moto_mends.speaks_tls(FakeBucket.get_permission))
    put(world, LaunchTemplate, "tags", property(moto_mends.template_tags, moto_mends.no_template_tags))
    put(world, ParameterDict, "_check_loading_status", loads_images(world.images, ParameterDict._check_loading_status))
    capture = world.life.hosts.capture
    put(world, EC2Backend, "create_image", captures(capture, EC2Backend.create_image))
    for name, wrap in (
        ("_delete_security_group", moto_mends.guards_group),
        ("delete_subnet", moto_mends.guards_subnet),
        ("detach_internet_gateway", moto_mends.guards_gateway),
    ):
        put(world, EC2Backend, name, wrap(getattr(EC2Backend, name)))
    for name in ("ENABLE_KEYPAIR_VALIDATION", "ENABLE_AMI_VALIDATION", "EC2_ENABLE_INSTANCE_TYPE_VALIDATION"):
        put(world, settings, name, True)
    world.stack.enter_context(patch.dict(utils.EC2_RESOURCE_TO_PREFIX, moto_groups.PREFIX))
    backwards = {prefix: kind for kind, prefix in moto_groups.PREFIX.items()}
    world.stack.enter_context(patch.dict(utils.EC2_PREFIX_TO_RESOURCE, backwards))


def put(world: World, owner: Any, name: str, value: Any) -> None:
    world.stack.enter_context(patch.object(owner, name, value, create=True))


def holdings() -> dict[str, dict[str, dict[str, str]]]:
    """Tags of every living resource by kind and id, over all regions: what is there, whatever the API admits."""
    found = moto_profiles.tagged()
    for account in list(ec2_backends.values()):
        for ec2 in list(account.values()):
            for kind, things in kinds(ec2).items():
                found.setdefault(kind, {}).update({t.id: dict(ec2.tags.get(t.id, {})) for t in things})
    return found


def kinds(ec2: Any) -> dict[str, list[Any]]:
    own = [v for v in ec2.vpcs.values() if not v.is_default]
    vpcs = {v.id for v in own}
    return {
        "instances": [i for i in ec2.all_instances() if i.state != "terminated"],
        "spot_requests": [r for r in ec2.spot_instance_requests.values() if r.state in ("open", "active")],
        "volumes": list(ec2.volumes.values()),
        "addresses": list(ec2.addresses),
        "network_interfaces": list(ec2.enis.values()),
        "key_pairs": list(ec2.key_pairs.values()),
        "launch_templates": list(ec2.launch_templates.values()),
        "placement_groups": list(groups_of(ec2).values()),
        "security_groups": [g for v in own for g in ec2.groups.get(v.id, {}).values() if not g.is_default],
        "subnets": [s for zone in ec2.subnets.values() for s in zone.values() if s.vpc_id in vpcs],
        "route_tables": [t for t in ec2.route_tables.values() if t.vpc_id in vpcs and not t.main_association_id],
        "vpc_endpoints": [e for e in ec2.vpc_end_points.values() if e.state != "deleted"],
        "internet_gateways": list(ec2.internet_gateways.values()),
        "vpcs": own,
    }
