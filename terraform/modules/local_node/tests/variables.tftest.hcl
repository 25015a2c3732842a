variables {
  cluster = "unit"
  name    = "n0"
  address = "127.0.0.2"
  port    = 2200
  gpus    = 2
  root    = "/tmp/nodes"
  ssh_dir = "/tmp/ssh"
}

run "node" {
  command = plan

  assert {
    condition     = output.node.home == "/tmp/nodes/n0/home"
    error_message = "home lies in the node's folder"
  }

  assert {
    condition     = terraform_data.node.input.NEXA_LOCAL_PORT == "2200"
    error_message = "settings reach host.py"
  }
}

run "cluster" {
  command = plan
  variables { cluster = "$(id)" }
  expect_failures = [var.cluster]
}

run "name" {
  command = plan
  variables { name = "node-0" }
  expect_failures = [var.name]
}

run "address" {
  command = plan
  variables { address = "10.0.0.1" }
  expect_failures = [var.address]
}

run "port" {
  command = plan
  variables { port = 70000 }
  expect_failures = [var.port]
}

run "gpus" {
  command = plan
  variables { gpus = 1.5 }
  expect_failures = [var.gpus]
}

run "user" {
  command = plan
  variables { user = "a b" }
  expect_failures = [var.user]
}

run "root" {
  command = plan
  variables { root = "~/nodes" }
  expect_failures = [var.root]
}

run "ssh_dir" {
  command = plan
  variables { ssh_dir = "" }
  expect_failures = [var.ssh_dir]
}

run "python" {
  command = plan
  variables { python = "" }
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
