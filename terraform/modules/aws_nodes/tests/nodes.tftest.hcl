mock_provider "aws" {}

variables {
  name                    = "nexa-unit-01234567"
  tags                    = { "nexa:cluster" = "unit" }
  node_names              = ["n0", "n2"]
  instance_type           = "g6.12xlarge"
  ami_id                  = "ami-0123456789abcdef0"
  market                  = "spot"
  key_name                = "nexa-unit-01234567"
  subnet_id               = "subnet-0123456789abcdef0"
  security_group_id       = "sg-0123456789abcdef0"
  launch_template_id      = "lt-0123456789abcdef0"
  launch_template_version = 1
  placement_group         = "nexa-unit-01234567"
  ssh_dir                 = abspath("tests/ssh")
  expires_unix            = 1800000000
  max_hours               = 6
}

run "spot" {
  command = apply

  assert {
    condition     = alltrue([for node in aws_instance.node : node.instance_market_options[0].market_type == "spot"])
    error_message = "spot is asked for"
  }

  assert {
    condition = alltrue([
      for node in aws_instance.node : node.instance_market_options[0].spot_options[0].spot_instance_type == "one-time" &&
      node.instance_market_options[0].spot_options[0].instance_interruption_behavior == "terminate"
    ])
    error_message = "a placement group takes only one-time spot that terminates"
  }

  assert {
    condition = alltrue([
      for node in aws_instance.node : node.root_block_device[0].encrypted && node.root_block_device[0].delete_on_termination &&
      node.root_block_device[0].volume_type == "gp3" && node.root_block_device[0].volume_size == 200
    ])
    error_message = "the volume is encrypted gp3 and goes with its node"
  }

  assert {
    condition     = aws_instance.node["n2"].tags["nexa:node"] == "n2" && aws_instance.node["n2"].volume_tags["Name"] == "nexa-unit-01234567-n2"
    error_message = "instance and volume say which node they are"
  }

  assert {
    condition     = aws_instance.node["n0"].associate_public_ip_address && aws_instance.node["n0"].subnet_id == var.subnet_id
    error_message = "a plain interface is asked for here"
  }

  assert {
    condition     = alltrue([for node in aws_instance.node : node.launch_template[0].version == "1"])
    error_message = "the version is a number"
  }

  assert {
    condition     = output.nodes["n0"].address == aws_instance.node["n0"].public_ip
    error_message = "reached by its public address"
  }
}

run "user_data" {
  command = apply # it is kept out of the plan
  variables { lease_s = 600 }

  assert {
    condition     = can(regex("(?s)^#cloud-config\n#[^\n]*\nbootcmd:", nonsensitive(local.user_data["n0"])))
    error_message = "the deadline comes before anything else"
  }

  assert {
    condition     = endswith(trimspace(yamldecode(nonsensitive(local.user_data["n0"])).bootcmd[0]), "/var/lib/nexa/deadline arm 1800000000 21600 \"$${INSTANCE_ID:-}\" 600 0 || poweroff")
    error_message = "the deadline is the cluster's"
  }

  assert {
    condition     = join(" ", yamldecode(nonsensitive(local.user_data["n0"])).runcmd[0]) == "chown -h ubuntu /var/lib/nexa/lease /var/lib/nexa/busy"
    error_message = "the login user may show signs of life"
  }

  assert {
    condition     = yamldecode(nonsensitive(local.user_data["n2"])).ssh_keys.ed25519_private == "private half of n2, a stand-in\n" && yamldecode(nonsensitive(local.user_data["n2"])).ssh_keys.ed25519_public == "public half of n2, a stand-in\n"
    error_message = "every node gets its own host key"
  }
}

run "on_demand" {
  command = plan
  variables {
    market          = "on_demand"
    placement_group = null
  }

  assert {
    condition     = alltrue([for node in aws_instance.node : length(node.instance_market_options) == 0])
    error_message = "no market option on demand"
  }
}

run "capacity_block" {
  command = plan
  variables {
    market               = "on_demand"
    placement_group      = null
    capacity_reservation = "cr-0123456789abcdef0"
    capacity_block       = true
  }

  assert {
    condition     = alltrue([for node in aws_instance.node : node.instance_market_options[0].market_type == "capacity-block"])
    error_message = "a Capacity Block is a market of its own"
  }

  assert {
    condition     = alltrue([for node in aws_instance.node : node.capacity_reservation_specification[0].capacity_reservation_target[0].capacity_reservation_id == "cr-0123456789abcdef0"])
    error_message = "nodes use the reservation"
  }
}

run "private" {
  command = apply
  variables {
    public_addresses = false
    efa_interfaces   = 2
  }

  assert {
    condition     = length(aws_eip.node) == 0 && output.nodes["n0"].address == aws_instance.node["n0"].private_ip
    error_message = "no address of the public internet"
  }
}

run "several_interfaces" {
  command = apply
  variables { efa_interfaces = 4 }

  assert {
    condition     = length(aws_eip.node) == 2 && output.nodes["n0"].address == aws_eip.node["n0"].public_ip
    error_message = "a node with several interfaces is reached by an Elastic IP"
  }

  assert {
    condition     = alltrue([for name, eip in aws_eip.node : aws_eip_association.node[name].allocation_id == eip.id])
    error_message = "each node gets its own"
  }
}

run "no_nodes" {
  command = plan
  variables { node_names = [] }

  assert {
    condition     = length(aws_instance.node) == 0 && length(output.nodes) == 0
    error_message = "without names no instance"
  }
}

run "no_host_key" {
  command = plan
  variables { node_names = ["n0", "n7"] }
  expect_failures = [aws_instance.node]
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    name           = "x"
    node_names     = ["../n0"]
    instance_type  = "large"
    ami_id         = "resolve:ssm:/aws/service/deeplearning/latest"
    market         = "capacity-block"
    key_name       = ""
    volume_gb      = 4
    efa_interfaces = -1
    user           = "root"
    ssh_dir        = "ssh"
    expires_unix   = 0
    max_hours      = 0
    lease_s        = 1
    idle_s         = 2592001

    capacity_reservation = "cb-0123456789abcdef0"
  }

  expect_failures = [
    var.name,
    var.node_names,
    var.instance_type,
    var.ami_id,
    var.market,
    var.key_name,
    var.volume_gb,
    var.efa_interfaces,
    var.user,
    var.ssh_dir,
    var.expires_unix,
    var.max_hours,
    var.lease_s,
    var.idle_s,
    var.capacity_reservation,
  ]
}

run "refused_2" {
  command = plan

  variables {
    node_names = ["n0", "n0"]
    user       = "a\nruncmd: [id]"
  }

  expect_failures = [
    var.node_names,
    var.user,
  ]
}

run "refused_3" {
  command = plan
  variables { node_names = [for number in range(65) : "n${number}"] }
  expect_failures = [var.node_names]
}
