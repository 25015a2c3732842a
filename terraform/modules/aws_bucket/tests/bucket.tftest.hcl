mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::lab-durable", id = "lab-durable" }
  }
}

variables {
  bucket = "lab-durable"
  tags   = { "nexa:owner" = "me" }
}

run "kept_and_private" {
  command = apply

  assert {
    condition     = !aws_s3_bucket.this.force_destroy && !terraform_data.guard.output.destroy_contents
    error_message = "by default the bucket is kept"
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "versions are kept"
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    error_message = "objects are encrypted"
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "nothing is public"
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.tls.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"
    error_message = "plain HTTP is refused"
  }

  assert {
    condition = toset(flatten([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : concat(
      rule.abort_incomplete_multipart_upload[*].days_after_initiation, rule.noncurrent_version_expiration[*].noncurrent_days
    )])) == toset([2, 30])
    error_message = "unfinished uploads and old versions go"
  }
}

# An apply, so that what the run above made can be destroyed when the test ends.
run "deleted_on_purpose" {
  command = apply
  variables { destroy_contents = true }

  assert {
    condition     = aws_s3_bucket.this.force_destroy && terraform_data.guard.output.destroy_contents
    error_message = "destroy_contents lifts the protection"
  }
}

# Each of these is refused, all in one go: a run takes a second.
run "refused_1" {
  command = plan

  variables {
    bucket          = "Lab.Durable"
    noncurrent_days = 0
  }

  expect_failures = [var.bucket, var.noncurrent_days]
}
