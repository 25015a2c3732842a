mock_provider "aws" {}

variables {
  name     = "nexa-unit-01234567"
  tags     = { "nexa:cluster" = "unit" }
  vpc_id   = "vpc-0123456789abcdef0"
  ssh_from = ["203.0.113.7/32", "198.51.100.0/24"]
}

run "closed" {
  command = apply

  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_ingress_rule.ssh : rule.from_port == 22 && rule.to_port == 22 && rule.ip_protocol == "tcp"])
    error_message = "only SSH comes in from outside"
  }

  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.ssh : rule.cidr_ipv4]) == toset(var.ssh_from)
    error_message = "only the given ranges come in"
  }

  assert {
    condition = alltrue([
      for rule in [aws_vpc_security_group_ingress_rule.self, aws_vpc_security_group_egress_rule.self] :
      rule.referenced_security_group_id == aws_security_group.nodes.id && rule.ip_protocol == "-1" && rule.cidr_ipv4 == null
    ])
    error_message = "the nodes reach each other, both ways"
  }

  assert {
    condition     = aws_security_group.nodes.tags["nexa:cluster"] == "unit" && aws_vpc_security_group_ingress_rule.self.tags["nexa:cluster"] == "unit"
    error_message = "group and rules carry the tags"
  }
}

run "mesh_only" {
  command = plan
  variables { ssh_from = [] }

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.ssh) == 0
    error_message = "without a range nobody reaches SSH"
  }
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    name     = "sg-unit"
    ssh_from = ["0.0.0.0/0"]
  }

  expect_failures = [var.name, var.ssh_from]
}

run "refused_2" {
  command = plan

  variables {
    ssh_from = ["1.2.3.4/0"]
  }

  expect_failures = [var.ssh_from]
}

run "refused_3" {
  command = plan

  variables {
    ssh_from = ["0.0.0.0/1", "128.0.0.0/1"]
  }

  expect_failures = [var.ssh_from]
}

run "refused_4" {
  command = plan

  variables {
    ssh_from = ["::/0"]
  }

  expect_failures = [var.ssh_from]
}

run "refused_5" {
  command = plan

  variables {
    ssh_from = ["203.0.113.7"]
  }

  expect_failures = [var.ssh_from]
}

run "refused_6" {
  command = plan

  variables {
    ssh_from = ["203.0.113.7/32", "203.0.113.7/32"]
  }

  expect_failures = [var.ssh_from]
}
