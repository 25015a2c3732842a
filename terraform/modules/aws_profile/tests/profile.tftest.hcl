mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name          = "nexa-unit-01234567"
  tags          = { "nexa:cluster" = "unit" }
  cluster       = "unit"
  bucket        = "lab-durable"
  bucket_prefix = "runs/unit"
}

run "one_prefix_of_one_bucket" {
  command = plan

  assert {
    condition     = jsondecode(aws_iam_role_policy.bucket.policy).Statement[0].Resource == ["arn:aws:s3:::lab-durable/runs/unit/*"]
    error_message = "objects are limited to the prefix"
  }

  assert {
    condition     = jsondecode(aws_iam_role_policy.bucket.policy).Statement[1].Condition.StringLike["s3:prefix"] == ["runs/unit", "runs/unit/*"]
    error_message = "so is the list"
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.bucket.policy, "Delete") && !strcontains(aws_iam_role_policy.bucket.policy, "s3:*")
    error_message = "a node cannot delete, and has no right by wildcard"
  }

  assert {
    condition = toset(flatten([for row in jsondecode(aws_iam_role_policy.bucket.policy).Statement : row.Action])) == toset([
      "s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
      "s3:ListBucket", "s3:ListBucketVersions",
    ])
    error_message = "these rights and no others"
  }

  assert {
    condition     = aws_iam_role.node.force_detach_policies
    error_message = "the policy that a run had does not keep the role from being destroyed"
  }

  assert {
    condition     = aws_iam_role.node.path == "/nexa/unit/" && aws_iam_instance_profile.node.path == "/nexa/unit/"
    error_message = "role and profile lie under the cluster's path"
  }

  assert {
    condition     = jsondecode(aws_iam_role.node.assume_role_policy).Statement[0].Principal == { Service = "ec2.amazonaws.com" }
    error_message = "only a machine takes the role"
  }
}

run "slash_at_the_end" {
  command = plan
  variables { bucket_prefix = "unit/" }

  assert {
    condition     = jsondecode(aws_iam_role_policy.bucket.policy).Statement[0].Resource == ["arn:aws:s3:::lab-durable/unit/*"]
    error_message = "the prefix is the same with and without it"
  }
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    name          = "role"
    cluster       = "../x"
    bucket        = "*"
    bucket_prefix = ""
  }

  expect_failures = [
    var.name,
    var.cluster,
    var.bucket,
    var.bucket_prefix,
  ]
}

run "refused_2" {
  command = plan

  variables {
    bucket_prefix = "runs/*"
  }

  expect_failures = [
    var.bucket_prefix,
  ]
}

run "refused_3" {
  command = plan

  variables {
    bucket_prefix = "runs/$${aws:username}"
  }

  expect_failures = [
    var.bucket_prefix,
  ]
}
