package main

// What is recommended in prose in the files that come with this module, step by
// step, in the form of compareCase and rewriterCase.

var betterCompare = map[string]string{
	"udp3_reorder_P_AB_S_AB":                    "-; -; A; B",
	"udp4_P_AB_S_BA":                            "-; -; B; A",
	"udp6_flush_order":                          "-; -; -; A B C",
	"igmp_same_dst_mac_differs":                 "-; !; A",
	"t1_same_data_different_ident/win/ack(P>S)": "-; !",
	"t2_pure_ACK_P_only_then_S_RST":             "A; -",
	"t2b_SYNACK_diff_ISN":                       "-; A",
	"t2c_FINACK_vs_RST":                         "-; !",
	"t8_seq_offset_differing_same_payload":      "-; !",
	"t8b_seq_offset_same_end":                   "-; A; -",
	"t9b_ooo_S_waiting":                         "-; -; A; B; -",
	"t12b_after_compare_ckpt_S_restarts_older":  "-; A; -; -; A2",
	"t15_new_conn_same_4-tuple_ISN_lower":       "-; A; -; Y; -; !",
	"t16b_padded_pure_ACKs_seq_mismatch":        "A; -; -",
	"t17_latest_not_max_ack":                    "-; -; A; -",
	"t18_ack_wrap":                              "-; !; A",
	"t19_compare_seq_zero":                      "-; A; -; A2; -",
	"q1_limit2_primary":                         "-; -; -; !; -; A B C D E",
}

var betterRewriter = map[string]string{
	"r2 RST without ACK is not rewritten, RST|ACK is":                      "500/0; 9000/501; 501/9001; 1001/0; 1001/501",
	"r11 QEMU BUG: SYN repeated after established":                         "500/0; 9000/501; 501/9001; 500/0; 501/9001; 1001/501",
	"r12 QEMU BUG: client ACK before the secondary SYNACK":                 "500/0; held; 9000/501 501/9001; 1001/501",
	"r14 guest opens: SYN, SYN|ACK and later packets are never translated": "9000/0; 500/9001; 1001/501; 1001/501; 501/9003",
	"r15 passive close with offset: entry stays (still translated)":        "500/0; 9000/501; 501/9001; 501/9001; 1001/502; 502/9002; 1002/502",
}
