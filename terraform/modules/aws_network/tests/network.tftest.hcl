mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }
  mock_data "aws_internet_gateway" {
    defaults = { id = "igw-0123456789abcdef0" }
  }
}

variables {
  name  = "nexa-unit-01234567"
  tags  = { "nexa:cluster" = "unit" }
  zones = ["us-east-1a", "us-east-1c"]
}

run "own_vpc" {
  command = apply

  assert {
    condition     = aws_vpc.own[0].cidr_block == "10.77.0.0/16" && output.vpc_id == aws_vpc.own[0].id
    error_message = "without vpc_id a VPC is made"
  }

  assert {
    condition     = aws_subnet.zone["us-east-1a"].cidr_block == "10.77.0.0/20" && aws_subnet.zone["us-east-1c"].cidr_block == "10.77.32.0/20"
    error_message = "the zone's letter chooses its part of the range"
  }

  assert {
    condition     = toset(keys(output.subnet_ids)) == toset(var.zones)
    error_message = "every zone has a subnet"
  }

  assert {
    condition     = !anytrue([for subnet in aws_subnet.zone : subnet.map_public_ip_on_launch])
    error_message = "a public address is asked for, never given by the subnet"
  }

  assert {
    condition     = length(aws_default_security_group.own[0].ingress) == 0 && length(aws_default_security_group.own[0].egress) == 0
    error_message = "the VPC's default group admits nothing"
  }

  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && aws_vpc_endpoint.s3.service_name == "com.amazonaws.us-east-1.s3"
    error_message = "S3 is reached by a gateway endpoint"
  }

  assert {
    condition = alltrue([
      for tags in concat([aws_vpc.own[0].tags, aws_internet_gateway.own[0].tags, aws_default_security_group.own[0].tags,
      aws_route_table.public.tags, aws_vpc_endpoint.s3.tags], [for subnet in aws_subnet.zone : subnet.tags]) :
      tags["nexa:cluster"] == "unit" && tags["Name"] != ""
    ])
    error_message = "everything carries the tags and a name"
  }
}

run "another_zone_moves_no_subnet" {
  command = plan
  variables { zones = ["us-east-1b", "us-east-1c", "us-east-1a"] }

  assert {
    condition     = aws_subnet.zone["us-east-1c"].cidr_block == "10.77.32.0/20" && aws_subnet.zone["us-east-1a"].cidr_block == "10.77.0.0/20"
    error_message = "order and number of the zones change no range"
  }
}

run "given_vpc" {
  command = plan

  variables {
    vpc_id   = "vpc-0123456789abcdef0"
    vpc_cidr = "172.31.64.0/20"
  }

  assert {
    condition     = length(aws_vpc.own) + length(aws_internet_gateway.own) + length(aws_default_security_group.own) == 0
    error_message = "nothing of a given VPC is changed"
  }

  assert {
    condition     = one(aws_route_table.public.route).gateway_id == "igw-0123456789abcdef0" && aws_subnet.zone["us-east-1a"].vpc_id == "vpc-0123456789abcdef0"
    error_message = "subnets are made in the given VPC and use its gateway"
  }
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    name     = "unit"
    zones    = []
    vpc_id   = "my-vpc"
    vpc_cidr = "8.8.0.0/16"
  }

  expect_failures = [var.name, var.zones, var.vpc_id, var.vpc_cidr]
}

run "refused_2" {
  command = plan

  variables {
    zones    = ["us-east-1a", "us-east-1a"]
    vpc_cidr = "10.77.0.0/24"
  }

  expect_failures = [var.zones, var.vpc_cidr]
}

run "refused_3" {
  command = plan

  variables {
    zones    = ["us-west-2-lax-1a"]
    vpc_cidr = "10.77.0.1/16"
  }

  expect_failures = [var.zones, var.vpc_cidr]
}
