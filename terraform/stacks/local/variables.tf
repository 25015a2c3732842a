variable "cluster" {
  description = "Name of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.cluster))
    error_message = "cluster must be 1 to 32 of a-z, 0-9 and '-'."
  }
}

variable "nodes" {
  description = "Nodes by name (n0, n1, …): loopback address and port of their sshd, and number of ranks."
  type = map(object({
    address = string
    port    = number
    gpus    = number
  }))

  validation {
    condition     = length(var.nodes) >= 1 && length(var.nodes) <= 64
    error_message = "nodes must hold 1 to 64 nodes."
  }

  validation {
    condition     = alltrue([for name in keys(var.nodes) : can(regex("^n(0|[1-9][0-9]{0,3})$", name))])
    error_message = "every node must be named n0, n1, … n9999."
  }

  validation {
    condition     = alltrue([for node in values(var.nodes) : can(regex("^127[.]", node.address)) && can(cidrnetmask("${node.address}/32"))])
    error_message = "every address must be an IPv4 loopback address (127.x.y.z)."
  }

  validation {
    condition     = alltrue([for node in values(var.nodes) : node.port >= 1024 && node.port <= 65535 && floor(node.port) == node.port])
    error_message = "every port must be a whole number from 1024 to 65535."
  }

  validation {
    condition     = alltrue([for node in values(var.nodes) : node.gpus >= 1 && node.gpus <= 1024 && floor(node.gpus) == node.gpus])
    error_message = "gpus must be a whole number from 1 to 1024."
  }

  validation {
    condition     = length(distinct([for node in values(var.nodes) : "${node.address}:${node.port}"])) == length(var.nodes)
    error_message = "two nodes cannot listen on the same address and port."
  }
}

variable "user" {
  description = "Login name on the nodes; empty means the user who runs Terraform, the only one who can log in."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-zA-Z_][a-zA-Z0-9_.-]{0,63})?$", var.user))
    error_message = "user must be a login name."
  }
}

variable "root" {
  description = "Absolute folder for the nodes' folders. It is made, marked as ours, and removed with the last node."
  type        = string

  validation {
    condition     = can(regex("^/[^[:cntrl:]]+$", var.root))
    error_message = "root must be an absolute path without control characters."
  }
}

variable "ssh_dir" {
  description = "Absolute folder with host_keys/<node>, host_keys/<node>.pub and client.pub, made before the nodes."
  type        = string

  validation {
    condition     = can(regex("^/[^[:cntrl:]]+$", var.ssh_dir))
    error_message = "ssh_dir must be an absolute path without control characters."
  }
}

variable "python" {
  description = "Python interpreter (3.9 or newer) that runs host.py."
  type        = string
  default     = "python3"

  validation {
    condition     = can(regex("^[^-[:cntrl:]][^[:cntrl:]]*$", var.python))
    error_message = "python must be a program name or path."
  }
}

variable "max_s" {
  description = "Seconds after it was switched on at which a node switches itself off; 0 for never."
  type        = number
  default     = 0

  validation {
    condition     = var.max_s >= 0 && var.max_s <= 315360000 && floor(var.max_s) == var.max_s
    error_message = "max_s must be a whole number of seconds from 0 to 315360000."
  }
}

variable "lease_s" {
  description = "Seconds after the controller's last sign of life at which a node switches itself off; 0 for never."
  type        = number
  default     = 0

  validation {
    condition     = var.lease_s >= 0 && var.lease_s <= 315360000 && floor(var.lease_s) == var.lease_s
    error_message = "lease_s must be a whole number of seconds from 0 to 315360000."
  }
}

variable "idle_s" {
  description = "Seconds without a run after which a node switches itself off; 0 for never."
  type        = number
  default     = 0

  validation {
    condition     = var.idle_s >= 0 && var.idle_s <= 315360000 && floor(var.idle_s) == var.idle_s
    error_message = "idle_s must be a whole number of seconds from 0 to 315360000."
  }
}
