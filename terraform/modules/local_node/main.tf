# One machine of a local cluster. host.py makes it and ends it; its settings travel in the environment,
# so no path or name is ever part of a shell command.
resource "terraform_data" "node" {
  input = {
    NEXA_LOCAL_PYTHON  = var.python
    NEXA_LOCAL_CLUSTER = var.cluster
    NEXA_LOCAL_NODE    = var.name
    NEXA_LOCAL_ROOT    = var.root
    NEXA_LOCAL_ADDRESS = var.address
    NEXA_LOCAL_PORT    = tostring(var.port)
    NEXA_LOCAL_SSH_DIR = var.ssh_dir
    NEXA_LOCAL_MAX_S   = tostring(var.max_s)
    NEXA_LOCAL_LEASE_S = tostring(var.lease_s)
    NEXA_LOCAL_IDLE_S  = tostring(var.idle_s)
  }

  # What another value of would need another machine. The interpreter, the number of ranks and the limits do not.
  triggers_replace = [var.cluster, var.name, var.root, var.address, var.port, var.ssh_dir]

  provisioner "local-exec" {
    command     = "exec \"$NEXA_LOCAL_PYTHON\" -I \"$NEXA_LOCAL_HOST_PY\" up"
    environment = merge(self.input, { NEXA_LOCAL_HOST_PY = abspath("${path.module}/host.py") })
  }

  provisioner "local-exec" {
    when        = destroy
    command     = "exec \"$NEXA_LOCAL_PYTHON\" -I \"$NEXA_LOCAL_HOST_PY\" down"
    environment = merge(self.input, { NEXA_LOCAL_HOST_PY = abspath("${path.module}/host.py") })
  }
}
