output "bucket" {
  description = "Name of the bucket. Known once it is private, encrypted and versioned."
  value       = aws_s3_bucket.this.id
  depends_on  = [terraform_data.guard]
}
