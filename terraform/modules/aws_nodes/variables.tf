variable "name" {
  description = "Prefix of every node's Name tag."
  type        = string

  validation {
    condition     = can(regex("^nexa-[a-z0-9-]{1,41}$", var.name))
    error_message = "name must be nexa-<cluster>-<8 hex>."
  }
}

variable "tags" {
  description = "Tags of every resource; nexa:node and Name are added."
  type        = map(string)
}

variable "node_names" {
  description = "Names of the nodes: n0, n1, … The number is the place in the rank order."
  type        = list(string)

  validation {
    condition     = length(var.node_names) <= 64 && length(distinct(var.node_names)) == length(var.node_names)
    error_message = "node_names must hold at most 64 names, each only once."
  }

  validation {
    condition     = alltrue([for name in var.node_names : can(regex("^n(0|[1-9][0-9]{0,3})$", name))])
    error_message = "every node must be named n0, n1, … n9999."
  }
}

variable "instance_type" {
  description = "Instance type of every node."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]+[.][a-z0-9-]+$", var.instance_type))
    error_message = "instance_type must be an EC2 instance type, for example g6.12xlarge."
  }
}

variable "ami_id" {
  description = "Image of every node. An id, not a moving name: another image replaces the nodes."
  type        = string

  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id must be an image's id (ami-…)."
  }
}

variable "market" {
  description = "Market of the instances: spot or on_demand."
  type        = string

  validation {
    condition     = contains(["spot", "on_demand"], var.market)
    error_message = "market must be spot or on_demand."
  }
}

variable "key_name" {
  description = "EC2 key pair whose owner may log in."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,255}$", var.key_name))
    error_message = "key_name must name a key pair: letters, digits and . _ -"
  }
}

variable "subnet_id" {
  description = "Subnet of every node."
  type        = string
}

variable "security_group_id" {
  description = "Security group of every node."
  type        = string
}

variable "instance_profile" {
  description = "Name of the instance profile; null for none."
  type        = string
  default     = null
}

variable "launch_template_id" {
  description = "Launch template with the metadata settings and the shutdown behaviour."
  type        = string
}

variable "launch_template_version" {
  description = "Version of the launch template that new nodes start from."
  type        = number
}

variable "placement_group" {
  description = "Name of the placement group; null for none."
  type        = string
  default     = null
}

variable "volume_gb" {
  description = "Size of a node's root volume, in the GiB that EBS counts in."
  type        = number
  default     = 200

  validation {
    condition     = var.volume_gb >= 8 && var.volume_gb <= 16384 && floor(var.volume_gb) == var.volume_gb
    error_message = "volume_gb must be a whole number from 8 to 16384."
  }
}

variable "efa_interfaces" {
  description = "Number of network interfaces that the launch template gives a node; 0 for the plain one."
  type        = number
  default     = 0

  validation {
    condition     = var.efa_interfaces >= 0 && floor(var.efa_interfaces) == var.efa_interfaces
    error_message = "efa_interfaces must be a whole number."
  }
}

variable "user" {
  description = "Login name on the nodes."
  type        = string
  default     = "ubuntu"

  validation {
    condition     = can(regex("^[A-Za-z_][A-Za-z0-9_.@-]{0,63}$", var.user)) && var.user != "root"
    error_message = "user must be a login name other than root."
  }
}

variable "ssh_dir" {
  description = "Absolute folder with host_keys/<node> and host_keys/<node>.pub, made before the nodes."
  type        = string

  validation {
    condition     = can(regex("^/[^[:cntrl:]]+$", var.ssh_dir))
    error_message = "ssh_dir must be an absolute path without control characters."
  }
}

variable "expires_unix" {
  description = "Unix time at which every node powers itself off."
  type        = number

  validation {
    condition     = var.expires_unix >= 1 && floor(var.expires_unix) == var.expires_unix
    error_message = "expires_unix must be a whole number of seconds."
  }
}

variable "max_hours" {
  description = "Hours from its first boot after which a node powers itself off; the earlier of both counts."
  type        = number

  validation {
    condition     = var.max_hours > 0 && var.max_hours <= 720
    error_message = "max_hours must be more than 0 and at most 720."
  }
}

variable "lease_s" {
  description = "Seconds after the controller's last sign of life at which a node powers itself off; 0 for never."
  type        = number
  default     = 0

  validation {
    condition     = var.lease_s == 0 || (var.lease_s >= 60 && var.lease_s <= 2592000 && floor(var.lease_s) == var.lease_s)
    error_message = "lease_s must be 0, or a whole number of seconds from 60 to 2592000."
  }
}

variable "idle_s" {
  description = "Seconds without a run after which a node powers itself off; 0 for never."
  type        = number
  default     = 0

  validation {
    condition     = var.idle_s == 0 || (var.idle_s >= 60 && var.idle_s <= 2592000 && floor(var.idle_s) == var.idle_s)
    error_message = "idle_s must be 0, or a whole number of seconds from 60 to 2592000."
  }
}

variable "public_addresses" {
  description = "Whether the nodes have public addresses, beside their private ones."
  type        = bool
  default     = true
}

variable "capacity_reservation" {
  description = "Capacity reservation (cr-…) that the nodes use; empty for none."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(cr-[0-9a-f]{8,17})?$", var.capacity_reservation))
    error_message = "capacity_reservation must be a reservation's id (cr-…), or empty."
  }
}

variable "capacity_block" {
  description = "Whether the reservation is a Capacity Block, which is a market of its own."
  type        = bool
  default     = false
}
