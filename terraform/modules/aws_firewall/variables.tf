variable "name" {
  description = "Name of the security group."
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

variable "vpc_id" {
  description = "VPC of the security group."
  type        = string
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

  validation {
    condition     = length(distinct(var.ssh_from)) == length(var.ssh_from) && length(var.ssh_from) <= 40
    error_message = "ssh_from must hold at most 40 ranges, each only once."
  }
}
