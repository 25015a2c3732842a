output "instance_profile" {
  description = "Name of the instance profile. Known once its policy is there too."
  value       = aws_iam_instance_profile.node.name
  depends_on  = [aws_iam_role_policy.bucket]
}
