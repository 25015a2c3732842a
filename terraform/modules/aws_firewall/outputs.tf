output "security_group_id" {
  description = "Id of the nodes' security group. Known once its rules are there too."
  value       = aws_security_group.nodes.id
  depends_on = [
    aws_vpc_security_group_ingress_rule.ssh,
    aws_vpc_security_group_ingress_rule.self,
    aws_vpc_security_group_egress_rule.self,
    aws_vpc_security_group_egress_rule.internet,
  ]
}
