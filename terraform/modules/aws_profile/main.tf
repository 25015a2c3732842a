# What a node may do in the account: read and write its cluster's part of one bucket, old versions too. It cannot
# delete, so a node that has gone astray can put something over a checkpoint, but neither hide nor end it. While a run
# is on, nexa adds an inline policy `run` that denies writing to any other run.
data "aws_partition" "current" {}

locals {
  bucket_arn = "arn:${data.aws_partition.current.partition}:s3:::${var.bucket}"
  prefix     = trimsuffix(var.bucket_prefix, "/")
  path       = "/nexa/${var.cluster}/"
}

resource "aws_iam_role" "node" {
  name        = var.name
  path        = local.path
  description = "Nodes of the Nexa cluster ${var.cluster}"
  tags        = merge(var.tags, { Name = var.name })

  force_detach_policies = true # the inline policy of a run is in no state

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "bucket" {
  name = "bucket"
  role = aws_iam_role.node.name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Objects"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource = ["${local.bucket_arn}/${local.prefix}/*"]
      },
      {
        Sid       = "List"
        Effect    = "Allow"
        Action    = ["s3:ListBucket", "s3:ListBucketVersions"]
        Resource  = [local.bucket_arn]
        Condition = { StringLike = { "s3:prefix" = [local.prefix, "${local.prefix}/*"] } }
      },
    ]
  })
}

resource "aws_iam_instance_profile" "node" {
  name = var.name
  path = local.path
  role = aws_iam_role.node.name
  tags = merge(var.tags, { Name = var.name })
}
