variable "cluster" {
  description = "Name of the cluster. A root folder belongs to one cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.cluster))
    error_message = "cluster must be 1 to 32 of a-z, 0-9 and '-'."
  }
}

variable "name" {
  description = "Name of the node: n0, n1, … The number is its place in the rank order."
  type        = string

  validation {
    condition     = can(regex("^n(0|[1-9][0-9]{0,3})$", var.name))
    error_message = "name must be n0, n1, … n9999."
  }
}

variable "address" {
  description = "Loopback address that the node's sshd listens on."
  type        = string

  validation {
    condition     = can(regex("^127[.]", var.address)) && can(cidrnetmask("${var.address}/32"))
    error_message = "address must be an IPv4 loopback address (127.x.y.z): a local node is never reachable from outside."
  }
}

variable "port" {
  description = "Port that the node's sshd listens on. Unprivileged, so that an ordinary user can run it."
  type        = number

  validation {
    condition     = var.port >= 1024 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "port must be a whole number from 1024 to 65535."
  }
}

variable "gpus" {
  description = "Number of ranks that the node takes."
  type        = number

  validation {
    condition     = var.gpus >= 1 && var.gpus <= 1024 && floor(var.gpus) == var.gpus
    error_message = "gpus must be a whole number from 1 to 1024."
  }
}

variable "user" {
  description = "Login name on the node; empty means the user who runs Terraform, the only one who can log in."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-zA-Z_][a-zA-Z0-9_.-]{0,63})?$", var.user))
    error_message = "user must be a login name."
  }
}

variable "root" {
  description = "Absolute folder that holds the nodes' folders (<root>/<name>/home, scratch, sshd.log)."
  type        = string

  validation {
    condition     = can(regex("^/[^[:cntrl:]]+$", var.root))
    error_message = "root must be an absolute path without control characters."
  }
}

variable "ssh_dir" {
  description = "Absolute folder with host_keys/<name>, host_keys/<name>.pub and client.pub, made before the node."
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
