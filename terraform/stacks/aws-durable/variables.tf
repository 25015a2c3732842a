variable "region" {
  description = "AWS region of the buckets."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be a region's name, for example us-east-1."
  }
}

variable "owner" {
  description = "Who pays: tag nexa:owner."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9 @._+=:/-]{0,127}$", var.owner))
    error_message = "owner must be 1 to 128 characters that an AWS tag takes: letters, digits, space and @ . _ + = : / -"
  }
}

variable "bucket" {
  description = "Bucket for checkpoints and manifests ($NEXA_DURABLE)."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket must be 3 to 63 of a-z, 0-9 and '-'."
  }
}

variable "state_bucket" {
  description = "Bucket for the Terraform states of a team's clusters; empty for none. Not the one that nodes write to."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-z0-9][a-z0-9-]{1,61}[a-z0-9])?$", var.state_bucket)) && var.state_bucket != var.bucket
    error_message = "state_bucket must be 3 to 63 of a-z, 0-9 and '-', or empty, and another than bucket."
  }
}

variable "noncurrent_days" {
  description = "Days for which a version that was replaced or deleted can be had back."
  type        = number
  default     = 30
}

variable "destroy_contents" {
  description = "Whether destroy may delete the buckets with all that is in them: apply with true first, then destroy."
  type        = bool
  default     = false
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
