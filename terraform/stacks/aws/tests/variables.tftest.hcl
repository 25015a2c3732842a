# Every variable refuses what would fail late, or do harm.
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
    max_hours     = 721
    lease_s       = -60
    idle_s        = 90.5
    node_names    = ["n01"]
    instance_type = "g6"
    zones         = ["us-east-1a", "eu-west-1a"]
    market        = "spot_then_on_demand"
    gpus_per_node = 0.5
    ami_id        = "latest"
    key_name      = ""
    ssh_dir       = "ssh"
    ssh_from      = ["0.0.0.0/0"]
    user          = "root"
    vpc_id        = "default"
    vpc_cidr      = "10.77.0.0/8"
    volume_gb     = 1.5
    bucket        = "Not_A_Bucket"
    tags          = { "Nexa:owner" = "eve" }

    placement_group_name = "a\nb"
  }

  expect_failures = [
    var.cluster,
    var.owner,
    var.workspace,
    var.expires,
    var.max_hours,
    var.lease_s,
    var.idle_s,
    var.node_names,
    var.instance_type,
    var.zones,
    var.market,
    var.gpus_per_node,
    var.ami_id,
    var.key_name,
    var.ssh_dir,
    var.ssh_from,
    var.user,
    var.vpc_id,
    var.vpc_cidr,
    var.volume_gb,
    var.bucket,
    var.tags,
    var.placement_group_name,
  ]
}

# These are judged beside another variable, which has to be right.
run "refused_2" {
  command = plan

  variables {
    expires_unix  = 1800003600
    node_names    = ["n0", "n0"]
    zone          = "us-east-1b"
    gpus_per_node = 0
    ssh_from      = ["::/0"]
    bucket_prefix = "/runs/"

    capacity_reservation = "cr-0123456789abcdef0" # on spot
  }

  expect_failures = [
    var.capacity_reservation,
    var.expires_unix,
    var.node_names,
    var.zone,
    var.gpus_per_node,
    var.ssh_from,
    var.bucket_prefix,
  ]
}

run "refused_3" {
  command = plan

  variables {
    expires_unix = 0
    node_names   = [for number in range(65) : "n${number}"]
    zones        = ["us-east-1a", "us-east-1a"]
    bucket       = "lab-durable"

    capacity_reservation = "cb-0123456789abcdef0"
  }

  expect_failures = [
    var.expires_unix,
    var.node_names,
    var.zones,
    var.bucket_prefix,
    var.capacity_reservation,
  ]
}

run "refused_4" {
  command = plan
  variables { subnet_ids = { "us-east-1c" = "subnet" } }
  expect_failures = [var.subnet_ids]
}
