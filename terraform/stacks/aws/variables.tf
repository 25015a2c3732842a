variable "region" {
  description = "AWS region of everything."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be a region's name, for example us-east-1."
  }
}

variable "cluster" {
  description = "Name of the cluster: tag nexa:cluster, and part of every name."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.cluster))
    error_message = "cluster must be 1 to 32 of a-z, 0-9 and '-'."
  }
}

variable "owner" {
  description = "Who pays and may end it: tag nexa:owner."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9 @._+=:/-]{0,127}$", var.owner))
    error_message = "owner must be 1 to 128 characters that an AWS tag takes: letters, digits, space and @ . _ + = : / -"
  }
}

variable "workspace" {
  description = "Which working copy made it: tag nexa:workspace."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9@._+=:/-][A-Za-z0-9 @._+=:/-]{0,127}$", var.workspace))
    error_message = "workspace must be 1 to 128 characters that an AWS tag takes: letters, digits, space and @ . _ + = : / -"
  }
}

variable "expires" {
  description = "When the cluster's time is up, in UTC (2026-01-31T12:00:00Z): tag nexa:expires."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$", var.expires)) && can(timeadd(var.expires, "0s"))
    error_message = "expires must be a time in UTC, for example 2026-01-31T12:00:00Z."
  }
}

variable "expires_unix" {
  description = "The same time as seconds since 1970: when every node powers itself off."
  type        = number

  validation {
    condition     = try(timeadd("1970-01-01T00:00:00Z", "${var.expires_unix}s") == timeadd(var.expires, "0s"), true)
    error_message = "expires_unix and expires must be the same time: one ends the nodes, the other is what a sweep reads."
  }
}

variable "max_hours" {
  description = "Hours from its first boot after which a node powers itself off; the earlier of both counts."
  type        = number
}

variable "lease_s" {
  description = "Seconds after the controller's last sign of life at which a node powers itself off; 0 for never."
  type        = number
  default     = 0
}

variable "idle_s" {
  description = "Seconds without a run after which a node powers itself off; 0 for never."
  type        = number
  default     = 0
}

variable "node_names" {
  description = "Names of the nodes: n0, n1, … Empty keeps the network and ends the nodes."
  type        = list(string)
}

variable "instance_type" {
  description = "Instance type of every node."
  type        = string
}

variable "zone" {
  description = "Availability zone of the nodes; one of zones."
  type        = string

  validation {
    condition     = contains(var.zones, var.zone)
    error_message = "zone must be one of zones."
  }
}

variable "zones" {
  description = "Every availability zone that an offer may use. Each has its subnet, so that moving the gang changes no network."
  type        = list(string)

  validation {
    condition     = alltrue([for zone in var.zones : can(regex("^${var.region}[a-p]$", zone))])
    error_message = "every zone must be the region's name and a letter from a to p, for example us-east-1a."
  }
}

variable "market" {
  description = "Market of the instances: spot or on_demand."
  type        = string
}

variable "gpus_per_node" {
  description = "Ranks that a node takes, one a GPU."
  type        = number

  validation {
    condition     = var.gpus_per_node >= 1 && var.gpus_per_node <= 16 && floor(var.gpus_per_node) == var.gpus_per_node
    error_message = "gpus_per_node must be a whole number from 1 to 16."
  }
}

variable "ami_id" {
  description = "Image of every node. An id, not a moving name: another image replaces the nodes."
  type        = string
}

variable "key_name" {
  description = "EC2 key pair whose owner may log in. It exists before the cluster, as the claim on its name."
  type        = string
}

variable "ssh_dir" {
  description = "Absolute folder with host_keys/<node> and host_keys/<node>.pub, made before the nodes."
  type        = string
}

variable "ssh_from" {
  description = "IPv4 ranges that may reach SSH; empty when only a mesh may."
  type        = list(string)
}

variable "user" {
  description = "Login name on the nodes."
  type        = string
  default     = "ubuntu"
}

variable "vpc_id" {
  description = "VPC to use: that of subnet_ids, or one with an internet gateway; empty to make one."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(vpc-[0-9a-f]{8,17})?$", var.vpc_id))
    error_message = "vpc_id must be a VPC's id (vpc-…), or empty."
  }
}

variable "vpc_cidr" {
  description = "Private address range of the cluster, 16 to 20 bits: the VPC's own, or a free part of the given VPC's."
  type        = string
  default     = "10.77.0.0/16"
}

variable "placement_group" {
  description = "Whether the nodes stand close together, in a cluster placement group."
  type        = bool
}

variable "efa" {
  description = "Whether the nodes get EFA on every network card that has it."
  type        = bool
  default     = false
}

variable "volume_gb" {
  description = "Size of a node's root volume, in the GiB that EBS counts in."
  type        = number
  default     = 200
}

variable "bucket" {
  description = "Bucket that nodes may read and write under bucket_prefix; empty for none, and for no instance profile."
  type        = string
  default     = ""
}

variable "bucket_prefix" {
  description = "Prefix of the keys that nodes may read and write, without '/' in front; needed with bucket."
  type        = string
  default     = ""
}

variable "tags" {
  description = "Tags of the user's own on everything, beside ours."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.tags) : !can(regex("^(?i:nexa:|aws:|name$)", key))])
    error_message = "tags must not hold Name, nor what begins with nexa: or aws:."
  }
}

variable "subnet_ids" {
  description = "Subnets of the user's own by zone, all of the VPC vpc_id; empty to make some."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for id in values(var.subnet_ids) : can(regex("^subnet-[0-9a-f]{8,17}$", id))])
    error_message = "subnet_ids must hold subnets' ids (subnet-…)."
  }

  validation {
    condition     = length(var.subnet_ids) == 0 || (contains(keys(var.subnet_ids), var.zone) && var.vpc_id != "")
    error_message = "subnet_ids must have a subnet in the zone of the nodes, and vpc_id their VPC."
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
    condition     = var.capacity_reservation == "" || (var.market == "on_demand" && !var.placement_group)
    error_message = "capacity_reservation goes with market on_demand, and with no placement group but its own."
  }
}

variable "capacity_block" {
  description = "Whether the reservation is a Capacity Block, which is a market of its own."
  type        = bool
  default     = false
}

variable "placement_group_name" {
  description = "Placement group that the reservation was made in; empty for none."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^[ -~]{0,255}$", var.placement_group_name))
    error_message = "placement_group_name must be a placement group's name, or empty."
  }
}
