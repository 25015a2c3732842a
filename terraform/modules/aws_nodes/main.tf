# One instance a node, by name: one that is lost can be replaced alone, and keeps its rank.
# Not a fleet or a spot request: those lose tags, hang at destroy, or replace nodes behind a gang's back.
locals {
  tags = {
    for name in var.node_names : name => merge(var.tags, { Name = "${var.name}-${name}", "nexa:node" = name })
  }

  user_data = {
    for name in var.node_names : name => templatefile("${path.module}/user_data.yaml.tftpl", {
      deadline_sh  = file("${path.module}/../../shared/deadline.sh")
      expires_unix = var.expires_unix
      max_s        = floor(var.max_hours * 3600)
      lease_s      = var.lease_s
      idle_s       = var.idle_s
      user         = var.user
      # timestamp() is not known before apply. A saved plan holds what is known of user_data in clear, beside its hash.
      # A missing key must not keep a cluster from being destroyed, so its absence is judged below.
      host_key        = sensitive(timestamp() == "" ? "" : try(file("${var.ssh_dir}/host_keys/${name}"), ""))
      host_public_key = try(file("${var.ssh_dir}/host_keys/${name}.pub"), "")
    })
  }
}

resource "aws_instance" "node" {
  #checkov:skip=CKV_AWS_79:the launch template asks for IMDSv2
  #checkov:skip=CKV_AWS_126:detailed monitoring costs money, and the node agent reports every few seconds
  #checkov:skip=CKV_AWS_135:every type with a GPU is EBS optimized by itself, and asking others for it fails
  for_each   = toset(var.node_names)
  depends_on = [aws_eip.node]

  ami                  = var.ami_id
  instance_type        = var.instance_type
  key_name             = var.key_name
  iam_instance_profile = var.instance_profile
  placement_group      = var.placement_group
  user_data            = local.user_data[each.key] # the state keeps a hash of it
  tags                 = local.tags[each.key]
  volume_tags          = local.tags[each.key]

  # With EFA these are said by the launch template's interfaces, and EC2 refuses to be told twice.
  subnet_id                   = var.efa_interfaces == 0 ? var.subnet_id : null
  vpc_security_group_ids      = var.efa_interfaces == 0 ? [var.security_group_id] : null
  associate_public_ip_address = var.efa_interfaces == 0 ? var.public_addresses : null

  launch_template {
    id      = var.launch_template_id
    version = tostring(var.launch_template_version)
  }

  root_block_device {
    volume_type           = "gp3"
    volume_size           = var.volume_gb
    encrypted             = true
    delete_on_termination = true
  }

  dynamic "instance_market_options" {
    for_each = var.capacity_block ? ["capacity-block"] : var.market == "spot" ? ["spot"] : []

    content {
      market_type = instance_market_options.value

      # The only kind that a placement group takes. No max_price: it adds interruptions, and the budget is ours to keep.
      dynamic "spot_options" {
        for_each = instance_market_options.value == "spot" ? ["spot"] : []

        content {
          spot_instance_type             = "one-time"
          instance_interruption_behavior = "terminate"
        }
      }
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = var.capacity_reservation == "" ? [] : [var.capacity_reservation]

    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }

  lifecycle {
    # A new version of the template, a later deadline or another host key is for nodes to come: it never replaces one
    # that runs. What makes it another machine (type, image, zone, market, reservation) does, by the resource below: what
    # the provider reads back of the market is a spot request's, and a reservation changes only on a stopped node.
    ignore_changes = [launch_template, user_data, instance_market_options, capacity_reservation_specification]

    replace_triggered_by = [terraform_data.machine]

    precondition {
      condition     = alltrue([for end in ["", ".pub"] : fileexists("${var.ssh_dir}/host_keys/${each.key}${end}")])
      error_message = "${each.key} has no host key: ${var.ssh_dir}/host_keys/${each.key} and ${each.key}.pub must exist before the node does (ssh-keygen -t ed25519 makes them)."
    }
  }
}

# What another value of needs another machine. The provider would stop a node to change its type, which a one-time spot
# instance cannot, and EFA's subnet is hidden in the launch template, whose changes are ignored above.
resource "terraform_data" "machine" {
  triggers_replace = concat(
    [var.instance_type, var.market, var.subnet_id, var.efa_interfaces],
    var.capacity_reservation == "" ? [] : [var.capacity_reservation],
  )
}

# Before the machines: an account without room for addresses is told so while nothing costs anything yet.
resource "aws_eip" "node" {
  #checkov:skip=CKV2_AWS_19:the association below gives each to its node
  for_each = var.efa_interfaces > 1 && var.public_addresses ? toset(var.node_names) : toset([])

  domain = "vpc"
  tags   = local.tags[each.key]
}

resource "aws_eip_association" "node" {
  for_each = aws_eip.node

  allocation_id        = each.value.id
  network_interface_id = aws_instance.node[each.key].primary_network_interface_id
}
