variable "cluster" {
  description = "Name of the cluster."
  type        = string
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
    condition     = length(distinct([for node in values(var.nodes) : "${node.address}:${node.port}"])) == length(var.nodes)
    error_message = "two nodes cannot listen on the same address and port."
  }
}

variable "user" {
  description = "Login name on the nodes; empty means the user who runs Terraform, the only one who can log in."
  type        = string
  default     = ""
}

variable "root" {
  description = "Absolute folder for the nodes' folders. It is made, marked as ours, and removed with the last node."
  type        = string
}

variable "ssh_dir" {
  description = "Absolute folder with host_keys/<node>, host_keys/<node>.pub and client.pub, made before the nodes."
  type        = string
}

variable "python" {
  description = "Python interpreter (3.9 or newer) that runs host.py."
  type        = string
  default     = "python3"
}

variable "max_s" {
  description = "Seconds after it was switched on at which a node switches itself off; 0 for never."
  type        = number
  default     = 0
}

variable "lease_s" {
  description = "Seconds after the controller's last sign of life at which a node switches itself off; 0 for never."
  type        = number
  default     = 0
}

variable "idle_s" {
  description = "Seconds without a run after which a node switches itself off; 0 for never."
  type        = number
  default     = 0
}
