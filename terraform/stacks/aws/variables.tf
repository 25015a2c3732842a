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
    condition     = var.expires_unix >= 1 && floor(var.expires_unix) == var.expires_unix
    error_message = "expires_unix must be a whole number of seconds."
  }

  validation {
    condition     = try(timeadd("1970-01-01T00:00:00Z", "${var.expires_unix}s") == timeadd(var.expires, "0s"), true)
    error_message = "expires_unix and expires must be the same time: one ends the nodes, the other is what a sweep reads."
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

variable "node_names" {
  description = "Names of the nodes: n0, n1, … Empty keeps the network and ends the nodes."
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
    condition     = length(var.zones) >= 1 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones must name at least one zone, and each only once."
  }

  validation {
    condition     = alltrue([for zone in var.zones : can(regex("^${var.region}[a-p]$", zone))])
    error_message = "every zone must be the region's name and a letter from a to p, for example us-east-1a."
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

  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id must be an image's id (ami-…)."
  }
}

variable "key_name" {
  description = "EC2 key pair whose owner may log in. It exists before the cluster, as the claim on its name."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,255}$", var.key_name))
    error_message = "key_name must name a key pair: letters, digits and . _ -"
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

variable "ssh_from" {
  description = "IPv4 ranges that may reach SSH; empty when only a mesh may."
  type        = list(string)

  validation {
    condition     = alltrue([for range in var.ssh_from : can(regex("^[0-9.]+/[0-9]+$", range)) && can(cidrnetmask(range))])
    error_message = "every range of ssh_from must be IPv4, for example 203.0.113.7/32: nodes have no other addresses."
  }

  validation {
    condition     = alltrue([for range in var.ssh_from : try(tonumber(split("/", range)[1]) >= 8, true)])
    error_message = "ssh_from must not let the world in: 0.0.0.0/0, or any range wider than /8, is refused."
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

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && can(regex("/(16|17|18|19|20)$", var.vpc_cidr))
    error_message = "vpc_cidr must be a private IPv4 range of 16 to 20 bits, for example 10.77.0.0/16."
  }
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

  validation {
    condition     = var.volume_gb >= 8 && var.volume_gb <= 16384 && floor(var.volume_gb) == var.volume_gb
    error_message = "volume_gb must be a whole number from 8 to 16384."
  }
}

variable "bucket" {
  description = "Bucket that nodes may read and write under bucket_prefix; empty for none, and for no instance profile."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-z0-9][a-z0-9-]{1,61}[a-z0-9])?$", var.bucket))
    error_message = "bucket must be a bucket's name (3 to 63 of a-z, 0-9 and '-'), or empty."
  }
}

variable "bucket_prefix" {
  description = "Prefix of the keys that nodes may read and write, without '/' in front; needed with bucket."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*/?)?$", var.bucket_prefix))
    error_message = "bucket_prefix must be words of letters, digits and . _ = - with '/' between them."
  }

  validation {
    condition     = var.bucket == "" || var.bucket_prefix != ""
    error_message = "bucket_prefix is needed with bucket: nodes may not read and write all of it."
  }
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
    condition     = can(regex("^(cr-[0-9a-f]{8,17})?$", var.capacity_reservation))
    error_message = "capacity_reservation must be a reservation's id (cr-…), or empty."
  }

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
