mock_provider "aws" {}

variables {
  name              = "nexa-unit-01234567"
  tags              = { "nexa:cluster" = "unit" }
  market            = "spot"
  placement_group   = true
  subnet_id         = "subnet-0123456789abcdef0"
  security_group_id = "sg-0123456789abcdef0"
}

run "safe_machine" {
  command = plan

  assert {
    condition     = aws_launch_template.node.metadata_options[0].http_tokens == "required" && aws_launch_template.node.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "metadata by token only, and not beyond the machine"
  }

  assert {
    condition     = aws_launch_template.node.metadata_options[0].instance_metadata_tags == "enabled"
    error_message = "a node may ask for its own name"
  }

  assert {
    condition     = aws_launch_template.node.instance_initiated_shutdown_behavior == "terminate"
    error_message = "a machine that powers itself off is gone"
  }

  assert {
    condition     = toset(aws_launch_template.node.tag_specifications[*].resource_type) == toset(["network-interface", "spot-instances-request"])
    error_message = "what a launch makes besides the instance is tagged"
  }

  assert {
    condition     = alltrue([for each in aws_launch_template.node.tag_specifications : each.tags["nexa:cluster"] == "unit"])
    error_message = "with the cluster's tags"
  }

  assert {
    condition     = length(aws_launch_template.node.network_interfaces) == 0 && aws_placement_group.cluster[0].strategy == "cluster"
    error_message = "one plain interface, nodes close together"
  }
}

run "on_demand_alone" {
  command = plan

  variables {
    market          = "on_demand"
    placement_group = false
  }

  assert {
    condition     = join(",", aws_launch_template.node.tag_specifications[*].resource_type) == "network-interface"
    error_message = "EC2 refuses tags for a spot request that is none"
  }

  assert {
    condition     = length(aws_placement_group.cluster) == 0 && output.placement_group == null
    error_message = "no placement group"
  }
}

run "efa_on_one_card" {
  command = plan
  variables { efa_interfaces = [{ card = 0, device = 0, type = "efa" }] }

  assert {
    condition     = aws_launch_template.node.network_interfaces[0].interface_type == "efa" && aws_launch_template.node.network_interfaces[0].associate_public_ip_address == "true"
    error_message = "a single interface carries the public address"
  }
}

run "tags_that_are_no_path" {
  command = plan
  variables { tags = { "nexa:cluster" = "unit", "Cost Center" = "1234" } }

  assert {
    condition     = aws_launch_template.node.metadata_options[0].instance_metadata_tags == "disabled"
    error_message = "EC2 refuses a launch whose tags it cannot show"
  }
}

run "private" {
  command = plan
  variables {
    efa_interfaces   = [{ card = 0, device = 0, type = "efa" }]
    public_addresses = false
  }

  assert {
    condition     = aws_launch_template.node.network_interfaces[0].associate_public_ip_address == "false"
    error_message = "in a private subnet nothing public is asked for"
  }
}

run "efa_on_two_cards" {
  command = plan
  variables { efa_interfaces = [{ card = 0, device = 0, type = "efa" }, { card = 1, device = 1, type = "efa-only" }] }

  assert {
    condition     = alltrue([for each in aws_launch_template.node.network_interfaces : each.associate_public_ip_address == null || each.associate_public_ip_address == ""])
    error_message = "EC2 gives a machine with several interfaces no public address"
  }

  assert {
    condition     = alltrue([for each in aws_launch_template.node.network_interfaces : each.delete_on_termination == "true"])
    error_message = "an interface goes with its machine"
  }
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    name           = "x"
    market         = "reserved"
    efa_interfaces = [{ card = 0, device = 0, type = "ena" }]
  }

  expect_failures = [var.name, var.market, var.efa_interfaces]
}

run "refused_2" {
  command = plan
  variables { efa_interfaces = [{ card = 0, device = 0, type = "efa-only" }] }
  expect_failures = [var.efa_interfaces]
}
