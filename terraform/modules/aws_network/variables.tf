variable "name" {
  description = "Prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^nexa-[a-z0-9-]{1,41}$", var.name))
    error_message = "name must be nexa-<cluster>-<8 hex>."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

variable "zones" {
  description = "Availability zones that nodes may be put in. Each gets one subnet."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 1 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones must name at least one zone, and each only once."
  }

  validation {
    # The letter chooses the subnet's part of the range, so that adding a zone moves no other zone's subnet.
    condition     = alltrue([for zone in var.zones : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-p]$", zone))])
    error_message = "every zone must be a region's name and a letter from a to p, for example us-east-1a."
  }
}

variable "vpc_id" {
  description = "VPC to use, with an internet gateway; empty to make one."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(vpc-[0-9a-f]{8,17})?$", var.vpc_id))
    error_message = "vpc_id must be a VPC's id (vpc-…), or empty."
  }
}

variable "vpc_cidr" {
  description = "Private address range of the cluster: the VPC's own, or a free part of the given VPC's."
  type        = string
  default     = "10.77.0.0/16"

  validation {
    condition     = can(regex("^(10|172[.](1[6-9]|2[0-9]|3[01])|192[.]168)[.].*/(16|17|18|19|20)$", var.vpc_cidr)) && can(cidrhost(var.vpc_cidr, 0))
    error_message = "vpc_cidr must be a private IPv4 range of 16 to 20 bits, for example 10.77.0.0/16."
  }

  validation {
    condition     = try(cidrsubnet(var.vpc_cidr, 0, 0), var.vpc_cidr) == var.vpc_cidr
    error_message = "vpc_cidr must be the first address of its range (10.77.0.0/16, not 10.77.0.1/16)."
  }
}
