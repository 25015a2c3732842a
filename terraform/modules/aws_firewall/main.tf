# SSH from the ranges that are given, everything between the cluster's own nodes, nothing else inwards.
resource "aws_security_group" "nodes" {
  #checkov:skip=CKV2_AWS_5:the stack attaches it to the nodes, which the scanner does not follow across modules
  name        = var.name
  description = "Nodes of one Nexa cluster"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = var.name })
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each = toset(var.ssh_from)

  security_group_id = aws_security_group.nodes.id
  description       = "SSH"
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
  tags              = merge(var.tags, { Name = "${var.name}-ssh" })
}

# EFA asks for both directions to be said.
resource "aws_vpc_security_group_ingress_rule" "self" {
  security_group_id            = aws_security_group.nodes.id
  description                  = "Between the nodes"
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
  tags                         = merge(var.tags, { Name = "${var.name}-self" })
}

resource "aws_vpc_security_group_egress_rule" "self" {
  security_group_id            = aws_security_group.nodes.id
  description                  = "Between the nodes"
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
  tags                         = merge(var.tags, { Name = "${var.name}-self" })
}

resource "aws_vpc_security_group_egress_rule" "internet" {
  security_group_id = aws_security_group.nodes.id
  description       = "Packages, models, data"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  tags              = merge(var.tags, { Name = "${var.name}-internet" })
}
