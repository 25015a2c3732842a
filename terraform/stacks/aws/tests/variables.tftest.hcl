# What would fail late, or do harm, and no module refuses.
mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }
}

mock_provider "aws" {
  alias = "instances"
}

variables {
  region          = "us-east-1"
  cluster         = "unit"
  owner           = "me@example.org"
  workspace       = "laptop-1"
  expires         = "2027-01-15T08:00:00Z"
  expires_unix    = 1800000000
  max_hours       = 6
  node_names      = [] # what is refused here is refused before any node
  instance_type   = "g6.12xlarge"
  zone            = "us-east-1a"
  zones           = ["us-east-1a"]
  market          = "spot"
  gpus_per_node   = 4
  ami_id          = "ami-0123456789abcdef0"
  key_name        = "nexa-unit-855c94f3"
  ssh_dir         = "/tmp/ssh"
  ssh_from        = ["203.0.113.7/32"]
  placement_group = true
}

run "region" {
  command = plan
  variables { region = "../x" }
  expect_failures = [var.region]
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    cluster       = "$(id)"
    owner         = ""
    workspace     = "a\nb"
    expires       = "2027-01-15T08:00:00+01:00"
    zones         = ["us-east-1a", "eu-west-1a"]
    gpus_per_node = 0.5
    vpc_id        = "default"
    tags          = { "Nexa:owner" = "eve" }

    placement_group_name = "a\nb"
  }

  expect_failures = [
    var.cluster,
    var.owner,
    var.workspace,
    var.expires,
    var.zones,
    var.gpus_per_node,
    var.vpc_id,
    var.tags,
    var.placement_group_name,
  ]
}

# These are judged beside another variable, which has to be right.
run "refused_2" {
  command = plan

  variables {
    expires_unix  = 1800003600
    zone          = "us-east-1b"
    gpus_per_node = 0

    capacity_reservation = "cr-0123456789abcdef0" # on spot
  }

  expect_failures = [
    var.capacity_reservation,
    var.expires_unix,
    var.zone,
    var.gpus_per_node,
  ]
}

run "refused_3" {
  command = plan
  variables { subnet_ids = { "us-east-1c" = "subnet" } }
  expect_failures = [var.subnet_ids]
}
