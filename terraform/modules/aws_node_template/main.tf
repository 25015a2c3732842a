locals {
  # EC2 shows a node its tags only where every key can be a part of a path, and refuses the launch otherwise.
  tags_shown = alltrue([for key in keys(var.tags) : can(regex("^[0-9A-Za-z_+=,.@:-]+$", key)) && !contains([".", "..", "_index"], key)])
}

# What every node has in common and only a launch template can say: how metadata is read, what a power-off means,
# the tags of the interfaces and spot requests that a launch makes, and EFA on several network cards.
# The volumes are with the instances, which know the name of their image's root device.
resource "aws_launch_template" "node" {
  name                                 = var.name
  description                          = "Nodes of one Nexa cluster"
  instance_initiated_shutdown_behavior = "terminate" # a node ends itself when its time is up
  tags                                 = merge(var.tags, { Name = var.name })

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = local.tags_shown ? "enabled" : "disabled" # a node may ask for its own name
  }

  dynamic "network_interfaces" {
    for_each = var.efa_interfaces

    content {
      network_card_index = network_interfaces.value.card
      device_index       = network_interfaces.value.device
      interface_type     = network_interfaces.value.type
      subnet_id          = var.subnet_id
      security_groups    = [var.security_group_id]
      # EC2 gives a public address only to a machine with a single interface; the others get an Elastic IP.
      associate_public_ip_address = length(var.efa_interfaces) == 1 ? var.public_addresses : null
      delete_on_termination       = true
    }
  }

  dynamic "tag_specifications" {
    for_each = concat(["network-interface"], var.market == "spot" ? ["spot-instances-request"] : [])

    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = var.name })
    }
  }
}

resource "aws_placement_group" "cluster" {
  count = var.placement_group ? 1 : 0

  name     = var.name
  strategy = "cluster"
  tags     = merge(var.tags, { Name = var.name })
}
