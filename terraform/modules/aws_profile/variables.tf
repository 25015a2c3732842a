variable "name" {
  description = "Name of the role and of the instance profile."
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

variable "cluster" {
  description = "Name of the cluster: part of the path /nexa/<cluster>/."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]{1,32}$", var.cluster))
    error_message = "cluster must be 1 to 32 of a-z, 0-9 and '-'."
  }
}

variable "bucket" {
  description = "Bucket that nodes may read and write."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket must be a bucket's name: 3 to 63 of a-z, 0-9 and '-'."
  }
}

variable "bucket_prefix" {
  description = "Prefix of the keys that nodes may read and write, without '/' in front."
  type        = string

  validation {
    # '*', '?' and '$' mean something in a policy.
    condition     = can(regex("^[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*/?$", var.bucket_prefix))
    error_message = "bucket_prefix must be words of letters, digits and . _ = - with '/' between them."
  }
}
