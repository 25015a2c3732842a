mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "us-east-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0" }
  }
  mock_data "aws_ec2_instance_type" {
    defaults = {
      gpus                           = [{ count = 4, manufacturer = "NVIDIA", memory_size = 24576, name = "L4" }]
      efa_supported                  = true
      efa_maximum_interfaces         = 1
      network_cards                  = [{ index = 0, maximum_interfaces = 8, baseline_bandwidth = 20, peak_bandwidth = 40, performance = "40 Gigabit" }]
      supported_placement_strategies = ["cluster", "partition", "spread"]
    }
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
  node_names      = ["n0", "n10", "n2"]
  instance_type   = "g6.12xlarge"
  zone            = "us-east-1c"
  zones           = ["us-east-1a", "us-east-1c"]
  market          = "spot"
  gpus_per_node   = 4
  ami_id          = "ami-0123456789abcdef0"
  key_name        = "nexa-unit-855c94f3"
  ssh_dir         = abspath("../../modules/aws_nodes/tests/ssh")
  ssh_from        = ["203.0.113.7/32"]
  placement_group = true
}

run "gang" {
  command = apply

  assert {
    condition     = join(",", output.nodes[*].name) == "n0,n2,n10"
    error_message = "rank order is by number"
  }

  assert {
    condition     = join(",", keys(output.nodes[0])) == "address,gpus,id,market,name,port,private_address,type,user,zone"
    error_message = "what the controller reads of a node"
  }

  assert {
    condition     = output.nodes[0].port == 22 && output.nodes[0].user == "ubuntu" && output.nodes[0].gpus == 4 && output.nodes[0].market == "spot"
    error_message = "a node says how it is reached and what it has"
  }

  assert {
    condition     = local.name == "nexa-unit-855c94f3"
    error_message = "names carry the owner's mark"
  }

  assert {
    condition     = length(module.profile) == 0
    error_message = "without a bucket a node has no rights"
  }
}

run "network_kept_without_nodes" {
  command = plan
  variables { node_names = [] }

  assert {
    condition     = length(output.nodes) == 0 && length(data.aws_ec2_instance_type.node) == 0
    error_message = "no node, and no question about its type"
  }
}

run "own_subnets_and_tags" {
  command = plan
  variables {
    tags       = { CostCenter = "1234" }
    vpc_id     = "vpc-0123456789abcdef0"
    subnet_ids = { "us-east-1c" = "subnet-0123456789abcdef0" }
  }

  assert {
    condition     = length(module.network) == 0 && local.subnet_id == "subnet-0123456789abcdef0" && local.vpc_id == var.vpc_id
    error_message = "no network is made"
  }

  assert {
    condition     = local.tags["CostCenter"] == "1234" && local.tags["nexa:owner"] == var.owner
    error_message = "the user's tags beside ours"
  }
}

run "profile_with_bucket" {
  command = plan
  variables {
    bucket        = "lab-durable"
    bucket_prefix = "runs/unit"
  }

  assert {
    condition     = length(module.profile) == 1
    error_message = "with a bucket a node may use its part"
  }
}

run "efa_on_one_card" {
  command = plan
  variables { efa = true }

  assert {
    condition     = jsonencode(local.efa_interfaces) == jsonencode([{ card = 0, device = 0, type = "efa" }])
    error_message = "the only interface carries addresses and EFA"
  }
}

run "efa_on_several_cards" {
  command = plan
  variables { efa = true }

  override_data {
    target = data.aws_ec2_instance_type.node[0]
    values = {
      gpus                           = [{ count = 4, manufacturer = "NVIDIA", memory_size = 24576, name = "L4" }]
      supported_placement_strategies = ["cluster"]
      efa_supported                  = true
      efa_maximum_interfaces         = 2
      network_cards = [
        { index = 1, maximum_interfaces = 2, baseline_bandwidth = 1, peak_bandwidth = 1, performance = "" },
        { index = 0, maximum_interfaces = 2, baseline_bandwidth = 1, peak_bandwidth = 1, performance = "" },
      ]
    }
  }

  assert {
    condition     = jsonencode(local.efa_interfaces) == jsonencode([{ card = 0, device = 0, type = "efa" }, { card = 1, device = 1, type = "efa-only" }])
    error_message = "further cards carry EFA alone, at index 1 where a card takes several"
  }
}

run "efa_beside_a_plain_card" {
  command = plan
  variables { efa = true }

  override_data {
    target = data.aws_ec2_instance_type.node[0]
    values = {
      gpus                           = [{ count = 4, manufacturer = "NVIDIA", memory_size = 24576, name = "L4" }]
      supported_placement_strategies = ["cluster"]
      efa_supported                  = true
      efa_maximum_interfaces         = 1
      network_cards = [
        { index = 0, maximum_interfaces = 2, baseline_bandwidth = 1, peak_bandwidth = 1, performance = "" },
        { index = 1, maximum_interfaces = 1, baseline_bandwidth = 1, peak_bandwidth = 1, performance = "" },
      ]
    }
  }

  assert {
    condition     = jsonencode(local.efa_interfaces) == jsonencode([{ card = 0, device = 0, type = "interface" }, { card = 1, device = 0, type = "efa-only" }])
    error_message = "card 0 stays plain where EFA has cards of its own"
  }
}

# The type has neither the GPUs, nor EFA, nor a place in a cluster placement group.
run "wrong_type" {
  command = plan

  variables {
    efa           = true
    gpus_per_node = 8
  }

  override_data {
    target = data.aws_ec2_instance_type.node[0]
    values = {
      gpus                           = [{ count = 4, manufacturer = "NVIDIA", memory_size = 24576, name = "L4" }]
      efa_supported                  = false
      supported_placement_strategies = ["partition", "spread"]
    }
  }

  expect_failures = [data.aws_ec2_instance_type.node]
}
