variables {
  cluster = "unit"
  root    = "/tmp/it's a root"
  ssh_dir = "/tmp/ssh"
  nodes = {
    n0  = { address = "127.0.0.2", port = 2200, gpus = 2 }
    n2  = { address = "127.0.0.3", port = 2200, gpus = 2 }
    n10 = { address = "127.0.0.4", port = 2200, gpus = 2 }
  }
}

run "nodes_come_in_rank_order" {
  command = plan

  assert {
    condition     = join(",", output.nodes[*].name) == "n0,n2,n10"
    error_message = "rank order is by number"
  }

  assert {
    condition     = jsonencode(output.nodes[2]) == jsonencode({ name = "n10", address = "127.0.0.4", port = 2200, user = "", gpus = 2, home = "/tmp/it's a root/n10/home" })
    error_message = "a node is name, address, port, user, gpus and home"
  }
}

run "no_nodes" {
  command = plan
  variables { nodes = {} }
  expect_failures = [var.nodes]
}

run "same_port_twice" {
  command = plan
  variables {
    nodes = {
      n0 = { address = "127.0.0.2", port = 2200, gpus = 1 }
      n1 = { address = "127.0.0.2", port = 2200, gpus = 1 }
    }
  }
  expect_failures = [var.nodes]
}
