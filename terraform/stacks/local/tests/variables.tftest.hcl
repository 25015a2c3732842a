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

run "cluster_name" {
  command = plan
  variables { cluster = "Not a name" }
  expect_failures = [var.cluster]
}

run "no_nodes" {
  command = plan
  variables { nodes = {} }
  expect_failures = [var.nodes]
}

run "node_name" {
  command = plan
  variables { nodes = { "../n0" = { address = "127.0.0.2", port = 2200, gpus = 1 } } }
  expect_failures = [var.nodes]
}

run "node_name_with_leading_zero" {
  command = plan
  variables { nodes = { n01 = { address = "127.0.0.2", port = 2200, gpus = 1 } } }
  expect_failures = [var.nodes]
}

run "address_that_others_reach" {
  command = plan
  variables { nodes = { n0 = { address = "0.0.0.0", port = 2200, gpus = 1 } } }
  expect_failures = [var.nodes]
}

run "address_that_is_none" {
  command = plan
  variables { nodes = { n0 = { address = "127.0.0.999", port = 2200, gpus = 1 } } }
  expect_failures = [var.nodes]
}

run "privileged_port" {
  command = plan
  variables { nodes = { n0 = { address = "127.0.0.2", port = 22, gpus = 1 } } }
  expect_failures = [var.nodes]
}

run "no_gpus" {
  command = plan
  variables { nodes = { n0 = { address = "127.0.0.2", port = 2200, gpus = 0 } } }
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

run "user_as_option" {
  command = plan
  variables { user = "-oProxyCommand=x" }
  expect_failures = [var.user]
}

run "relative_root" {
  command = plan
  variables { root = "nodes" }
  expect_failures = [var.root]
}

run "root_with_newline" {
  command = plan
  variables { root = "/tmp/a\nb" }
  expect_failures = [var.root]
}

run "relative_ssh_dir" {
  command = plan
  variables { ssh_dir = "ssh" }
  expect_failures = [var.ssh_dir]
}

run "python_as_option" {
  command = plan
  variables { python = "-c" }
  expect_failures = [var.python]
}

run "limits" {
  command = plan
  variables {
    max_s   = 1.5
    lease_s = -1
    idle_s  = 1e10
  }
  expect_failures = [var.max_s, var.lease_s, var.idle_s]
}
