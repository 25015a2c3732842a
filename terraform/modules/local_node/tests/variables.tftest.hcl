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

# Each of these is refused, all in one go.
run "refused_1" {
  command = plan

  variables {
    cluster = "$(id)"
    name    = "node-0"
    address = "10.0.0.1"
    port    = 70000
    gpus    = 1.5
    user    = "a b"
    root    = "~/nodes"
    ssh_dir = ""
    python  = ""
    max_s   = 1.5
    lease_s = -1
    idle_s  = 1e10
  }

  expect_failures = [
    var.cluster,
    var.name,
    var.address,
    var.port,
    var.gpus,
    var.user,
    var.root,
    var.ssh_dir,
    var.python,
    var.max_s,
    var.lease_s,
    var.idle_s,
  ]
}

run "refused_2" {
  command = plan

  variables {
    name    = "../n0"
    address = "127.0.0.999"
    port    = 22
    gpus    = 0
    user    = "-oProxyCommand=x"
    root    = "/tmp/a\nb"
    ssh_dir = "ssh"
    python  = "-c"
  }

  expect_failures = [
    var.name,
    var.address,
    var.port,
    var.gpus,
    var.user,
    var.root,
    var.ssh_dir,
    var.python,
  ]
}

run "refused_3" {
  command = plan

  variables {
    name    = "n01"
    address = "0.0.0.0"
    root    = "nodes"
  }

  expect_failures = [var.name, var.address, var.root]
}
