# What outlives every cluster, in a state of its own: no teardown of a cluster can reach it.
provider "aws" {
  region = var.region
}

locals {
  buckets = merge({ durable = var.bucket }, var.state_bucket == "" ? {} : { state = var.state_bucket })
}

module "bucket" {
  source   = "../../modules/aws_bucket"
  for_each = local.buckets

  bucket           = each.value
  noncurrent_days  = var.noncurrent_days
  destroy_contents = var.destroy_contents
  tags             = merge(var.tags, { "nexa:owner" = var.owner, "nexa:durable" = each.key })
}
