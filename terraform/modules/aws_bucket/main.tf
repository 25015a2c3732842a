# A bucket for what must not be lost. The guard at the end keeps it unless deletion was asked for by an apply before;
# prevent_destroy would keep it for good, since no variable can lift that.
resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18:access logs need a second bucket, and CloudTrail has them where an account wants them
  #checkov:skip=CKV_AWS_144:a second region doubles the bill of checkpoints that are made again in a day
  #checkov:skip=CKV_AWS_145:keys of S3's own; a KMS key costs money a month and per request, and adds a right that nodes need
  #checkov:skip=CKV2_AWS_62:nothing listens to events
  bucket        = var.bucket
  force_destroy = var.destroy_contents
  tags          = merge(var.tags, { Name = var.bucket })
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket = aws_s3_bucket.this.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "tls" {
  bucket = aws_s3_bucket.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

# Everything is older than the guard, so destroy begins here. Without it, destroy would take versions, encryption and
# privacy away before S3 refuses to delete a bucket that is not empty.
resource "terraform_data" "guard" {
  input            = { bucket = var.bucket, destroy_contents = var.destroy_contents }
  triggers_replace = [var.bucket]

  provisioner "local-exec" {
    when    = destroy
    quiet   = true
    command = "[ \"$ALLOWED\" = true ] || { echo \"the bucket $BUCKET is kept: apply with destroy_contents = true first\" >&2; exit 1; }"

    environment = {
      ALLOWED = tostring(self.input.destroy_contents)
      BUCKET  = self.input.bucket
    }
  }

  depends_on = [
    aws_s3_bucket_versioning.this,
    aws_s3_bucket_server_side_encryption_configuration.this,
    aws_s3_bucket_public_access_block.this,
    aws_s3_bucket_ownership_controls.this,
    aws_s3_bucket_policy.tls,
    aws_s3_bucket_lifecycle_configuration.this,
  ]
}
