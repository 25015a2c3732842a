variable "bucket" {
  description = "Name of the bucket."
  type        = string

  validation {
    # A dot in the name breaks TLS.
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket must be 3 to 63 of a-z, 0-9 and '-'."
  }
}

variable "tags" {
  description = "Tags of the bucket."
  type        = map(string)
}

variable "noncurrent_days" {
  description = "Days for which a version that was replaced or deleted can be had back."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && var.noncurrent_days <= 3650 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days must be a whole number from 1 to 3650."
  }
}

variable "destroy_contents" {
  description = "Whether destroy may delete the bucket with all that is in it: apply with true first, then destroy."
  type        = bool
  default     = false
}
