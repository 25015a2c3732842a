variable "name" {
  description = "Name of the launch template and of the placement group."
  type        = string

  validation {
    condition     = can(regex("^nexa-[a-z0-9-]{1,41}$", var.name))
    error_message = "name must be nexa-<cluster>-<8 hex>."
  }
}

variable "tags" {
  description = "Tags of every resource, and of the network interfaces and spot requests that a launch makes."
  type        = map(string)
}

variable "market" {
  description = "Market of the instances: spot or on_demand."
  type        = string

  validation {
    condition     = contains(["spot", "on_demand"], var.market)
    error_message = "market must be spot or on_demand."
  }
}

variable "placement_group" {
  description = "Whether the nodes stand close together, in a cluster placement group."
  type        = bool
}

variable "efa_interfaces" {
  description = "EFA network interfaces of a node: card, index on the card, interface or efa or efa-only. Empty for one plain interface."
  type = list(object({
    card   = number
    device = number
    type   = string
  }))
  default = []

  validation {
    condition     = alltrue([for each in var.efa_interfaces : contains(["interface", "efa", "efa-only"], each.type)])
    error_message = "the type of an EFA interface must be interface, efa or efa-only."
  }

  validation {
    condition     = length(var.efa_interfaces) == 0 || try(var.efa_interfaces[0].card == 0 && var.efa_interfaces[0].device == 0 && var.efa_interfaces[0].type != "efa-only", false)
    error_message = "the first EFA interface must be card 0, device 0, and carry addresses (interface or efa)."
  }
}

variable "subnet_id" {
  description = "Subnet of the EFA interfaces."
  type        = string
}

variable "security_group_id" {
  description = "Security group of the EFA interfaces."
  type        = string
}

variable "public_addresses" {
  description = "Whether the nodes have public addresses, beside their private ones."
  type        = bool
  default     = true
}
