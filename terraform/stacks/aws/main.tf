# One gang of equal GPU nodes in one zone. What outlives it (bucket, remote state) is in stacks/aws-durable.
locals {
  name = "nexa-${var.cluster}-${substr(sha256(var.owner), 0, 8)}"

  # Ours last: what a sweep goes by is never another's word.
  tags = merge(var.tags, {
    "nexa:cluster"   = var.cluster
    "nexa:owner"     = var.owner
    "nexa:workspace" = var.workspace
    "nexa:expires"   = var.expires
  })

  vpc_id    = length(var.subnet_ids) > 0 ? var.vpc_id : module.network[0].vpc_id
  subnet_id = length(var.subnet_ids) > 0 ? var.subnet_ids[var.zone] : module.network[0].subnet_ids[var.zone]

  type = one(data.aws_ec2_instance_type.node[*])

  # Card 0 carries the addresses, and EFA too unless every EFA interface has a card of its own beside it. A card that
  # takes several interfaces wants its EFA at index 1.
  efa_max = var.efa && local.type != null && try(local.type.efa_supported, false) ? local.type.efa_maximum_interfaces : 0
  cards   = local.efa_max == 0 ? {} : { for card in local.type.network_cards : tonumber(card.index) => card.maximum_interfaces }
  efa_interfaces = local.efa_max == 0 ? [] : [
    for card in slice(range(length(local.cards)), 0, min(length(local.cards), local.efa_max + (local.efa_max < length(local.cards) ? 1 : 0))) : {
      card   = card
      device = card == 0 || local.cards[card] == 1 ? 0 : 1
      type   = card > 0 ? "efa-only" : local.efa_max < length(local.cards) ? "interface" : "efa"
    }
  ]

  # Terraform orders keys as text, n10 before n2; rank order is by number.
  rank_order = { for name in var.node_names : format("%04d", tonumber(trimprefix(name, "n"))) => name }
}

data "aws_ec2_instance_type" "node" {
  count = length(var.node_names) > 0 ? 1 : 0

  instance_type = var.instance_type

  lifecycle {
    postcondition {
      condition     = sum(concat([0], [for gpu in self.gpus : gpu.count])) >= var.gpus_per_node
      error_message = "${var.instance_type} has ${sum(concat([0], [for gpu in self.gpus : gpu.count]))} GPUs, gpus_per_node asks for ${var.gpus_per_node}: choose a larger type or fewer."
    }

    postcondition {
      condition     = !var.efa || self.efa_supported
      error_message = "${var.instance_type} has no EFA: choose another type, or efa = false."
    }

    postcondition {
      condition     = !var.placement_group || contains(self.supported_placement_strategies, "cluster")
      error_message = "${var.instance_type} cannot be in a cluster placement group: choose another type, or placement_group = false."
    }
  }
}

# None of it in the user's own subnets: their routes are the user's.
module "network" {
  source = "../../modules/aws_network"
  count  = length(var.subnet_ids) > 0 ? 0 : 1

  name     = local.name
  tags     = local.tags
  zones    = var.zones
  vpc_id   = var.vpc_id
  vpc_cidr = var.vpc_cidr
}

moved {
  from = module.network
  to   = module.network[0]
}

module "firewall" {
  source = "../../modules/aws_firewall"

  name     = local.name
  tags     = local.tags
  vpc_id   = local.vpc_id
  ssh_from = var.ssh_from
}

module "profile" {
  source = "../../modules/aws_profile"
  count  = var.bucket == "" ? 0 : 1

  name          = local.name
  tags          = local.tags
  cluster       = var.cluster
  bucket        = var.bucket
  bucket_prefix = var.bucket_prefix
}

module "template" {
  source = "../../modules/aws_node_template"

  name              = local.name
  tags              = local.tags
  market            = var.market
  placement_group   = var.placement_group
  efa_interfaces    = local.efa_interfaces
  public_addresses  = var.public_addresses
  subnet_id         = local.subnet_id
  security_group_id = module.firewall.security_group_id
}

module "nodes" {
  source    = "../../modules/aws_nodes"
  providers = { aws = aws.instances }

  name                    = local.name
  tags                    = local.tags
  node_names              = var.node_names
  instance_type           = var.instance_type
  ami_id                  = var.ami_id
  market                  = var.market
  key_name                = var.key_name
  subnet_id               = local.subnet_id
  public_addresses        = var.public_addresses
  security_group_id       = module.firewall.security_group_id
  instance_profile        = one(module.profile[*].instance_profile)
  launch_template_id      = module.template.launch_template_id
  launch_template_version = module.template.launch_template_version
  placement_group         = var.placement_group_name == "" ? module.template.placement_group : var.placement_group_name
  capacity_reservation    = var.capacity_reservation
  capacity_block          = var.capacity_block
  volume_gb               = var.volume_gb
  efa_interfaces          = length(local.efa_interfaces)
  user                    = var.user
  ssh_dir                 = var.ssh_dir
  expires_unix            = var.expires_unix
  max_hours               = var.max_hours
  lease_s                 = var.lease_s
  idle_s                  = var.idle_s
}
