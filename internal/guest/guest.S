# The flat test program: one load loop per vCPU, entered at CPL3 in 64-bit mode
# with paging on (identity map) and RDI holding the address of the vCPU's state
# page. It takes no interrupts, makes no calls, has no stack and never leaves the
# loop. Offsets and constants are those of layout.go; the arithmetic is that of
# round.go and model.go.
#
#   as --64 -o guest.o guest.S && ld -Ttext=0x8000 --oformat=binary -o guest.bin guest.o

	.intel_syntax noprefix

	# State page.
	.set SEED,   0x08
	.set SET,    0x10		# working set: address
	.set PAGES,  0x18		# working set: pages
	.set TOUCH,  0x20		# pages touched per round
	.set TSC,    0x28		# rounds that take in the TSC, per mille
	.set DELAY,  0x30		# idle loop iterations at the end of a round
	.set RING,   0x38		# ring: address
	.set FRAME,  0x40		# frame buffer: address
	.set EVERY,  0x48		# rounds from one disk write to the next, 0 for none
	.set FIRST,  0x50		# region of the disk: first sector
	.set SECTORS, 0x58		# region of the disk: sectors
	.set DESC,   0x60		# descriptor of disk writes: address

	# Frame buffer: le32 length, frame. Payload fields, all big-endian.
	.set PAYLOAD_N, 54
	.set PAYLOAD_H, 62
	.set PAYLOAD_T, 70
	.set POLLS, 0x80		# status reads so far, little-endian

	# Behind it in the same page: what the device has put there for the guest, a
	# frame of the same form; what the guest answers; what it remembers.
	.set IN,    0x200
	.set REPLY, 0x300
	.set LAST_M, 0x400		# the input taken last
	.set LAST_Y, 0x408		# the hash of all of them

	# Descriptor of a disk write.
	.set D_SECTOR, 0x00
	.set D_LENGTH, 0x08		# bytes
	.set D_FLUSH,  0x10
	.set D_DATA,   0x18		# address, in place
	.set D_ROUND,  0x20
	.set D_DONE,   0x28		# the device's

	.set PORT_STATUS, 0x600
	.set PORT_DISK,   0x600
	.set PORT_EMIT,   0x604

# x = (x ^ v) * K; x ^= x >> 32
	.macro mix v
	xor	r13, \v
	imul	r13, r15
	mov	rax, r13
	shr	rax, 32
	xor	r13, rax
	.endm

	.text
	.globl	_start
_start:
	mov	rbx, rdi		# state page
	movabs	r15, 0x9e3779b97f4a7c15	# K
	xor	r11d, r11d		# status reads
	xor	r12d, r12d		# n: rounds begun
	mov	r13, [rbx+SEED]		# x: running hash
	mov	r14, r13		# k: an integer that is never in memory
	not	r14
	xorpd	xmm0, xmm0		# the accumulator, never in memory either

round:
	inc	r12

	# Touch pages page, page+1, … of the working set, wrapping; the first is
	# floor(x * pages / 2^64). In each, the first word (so that a stale page
	# is noticed at its next visit) and one that differs from round to round
	# (so that all of it matters). A word that x takes in is exchanged for what
	# x was before, so that the round can be undone: no two states become one,
	# whatever the words are, and if both are the same word.
	mov	r8, [rbx+TOUCH]
	test	r8, r8
	jz	3f
	mov	rax, r13
	mul	qword ptr [rbx+PAGES]
	mov	r9, rdx
	imul	r10, r12, 181
	and	r10d, 511
1:	mov	rdi, r9
	shl	rdi, 12
	add	rdi, [rbx+SET]
	mov	rcx, r13
	mix	[rdi]
	mov	[rdi], rcx
	mov	rcx, r13
	mix	[rdi+r10*8]
	mov	[rdi+r10*8], rcx
	add	r10d, 7
	and	r10d, 511
	inc	r9
	cmp	r9, [rbx+PAGES]
	jb	2f
	xor	r9d, r9d
2:	dec	r8
	jnz	1b

	# x takes acc in; then acc = acc * 0.75 + (x >> 12), which rounds, so that
	# two values could become one if x had not seen them.
3:	movq	rcx, xmm0
	mix	rcx
	mov	rax, r13
	shr	rax, 12
	cvtsi2sd xmm1, rax
	mulsd	xmm0, [rip+decay]
	addsd	xmm0, xmm1

	# k = k * 0x2545f491 + n
	imul	r14, r14, 0x2545f491
	add	r14, r12
	mix	r14

	# t = TSC in the given share of the rounds, else 0
	xor	esi, esi
	mov	rax, r12
	imul	rax, r15
	mov	ecx, 1000
	mul	rcx
	cmp	rdx, [rbx+TSC]
	jae	4f
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	rsi, rax
4:	mix	rsi

	# h = x. The ring remembers (n, h).
	movzx	eax, r12w
	shl	eax, 4
	add	rax, [rbx+RING]
	mov	[rax], r12
	mov	[rax+8], r13

	# The frame tells (n, h, t); its headers and vCPU number are in place.
	mov	rdi, [rbx+FRAME]
	mov	rax, r12
	bswap	rax
	mov	[rdi+PAYLOAD_N], rax
	mov	rax, r13
	bswap	rax
	mov	[rdi+PAYLOAD_H], rax
	mov	rax, rsi
	bswap	rax
	mov	[rdi+PAYLOAD_T], rax

	# Every so many rounds the disk gets a block: one to eight sectors of the
	# region, both chosen by the hash, that tell of as much of a page of the
	# working set. The first word of a sector is n, another the running hash
	# of the page so far. Every sixteenth write is flushed.
	mov	rcx, [rbx+EVERY]
	test	rcx, rcx
	jz	9f
	mov	rax, r12
	xor	edx, edx
	div	rcx
	test	rdx, rdx
	jnz	9f
	mov	rbp, r13		# x is wanted again
	mov	r9, [rbx+DESC]
	test	eax, 15
	setz	dl
	mov	[r9+D_FLUSH], rdx
	mov	rax, r13
	mul	qword ptr [rbx+PAGES]
	mov	r8, rdx
	shl	r8, 12
	add	r8, [rbx+SET]
	mix	r12
	mov	rax, r13
	mul	qword ptr [rbx+SECTORS]
	mov	rcx, r13
	and	ecx, 7
	inc	ecx
	mov	rax, [rbx+SECTORS]
	sub	rax, rdx
	cmp	rcx, rax
	cmova	rcx, rax
	add	rdx, [rbx+FIRST]
	mov	[r9+D_SECTOR], rdx
	shl	ecx, 9
	mov	[r9+D_LENGTH], rcx
	shr	ecx, 3			# words
	mov	[r9+D_ROUND], r12
	mov	r10, [r9+D_DATA]
	xor	esi, esi
7:	mix	[r8+rsi*8]
	mov	rax, r13
	test	esi, 63
	cmovz	rax, r12
	mov	[r10+rsi*8], rax
	inc	esi
	cmp	esi, ecx
	jb	7b
	mov	r13, rbp
	mov	edx, PORT_DISK
	mov	eax, r9d
8:	out	dx, eax
	cmp	[r9+D_DONE], r12	# the frame must not leave before
	jne	8b

9:	mov	edx, PORT_STATUS
5:	in	al, dx
	inc	r11
	test	al, 2
	jnz	10f
	test	al, 1
	jz	5b
	mov	[rdi+POLLS], r11
	mov	edx, PORT_EMIT
	mov	eax, edi
	out	dx, eax

	mov	rcx, [rbx+DELAY]
6:	test	rcx, rcx
	jz	round
	dec	rcx
	jmp	6b

	# An input (m, v). The one after the last is taken: y = y mixed with m and v,
	# and answered with (m, y, v); the last one is answered again; any other is
	# ignored. Nothing of a round depends on it.
10:	mov	rsi, [rdi+IN+PAYLOAD_N]
	bswap	rsi
	mov	rcx, [rdi+IN+PAYLOAD_H]
	mov	rax, [rdi+LAST_M]
	cmp	rsi, rax
	je	11f
	inc	rax
	cmp	rsi, rax
	jne	5b
	mov	rbp, r13		# x is wanted again
	mov	r13, [rdi+LAST_Y]
	mix	rsi
	mov	[rdi+REPLY+PAYLOAD_T], rcx
	bswap	rcx
	mix	rcx
	mov	[rdi+LAST_M], rsi
	mov	[rdi+LAST_Y], r13
	bswap	rsi
	mov	[rdi+REPLY+PAYLOAD_N], rsi
	bswap	r13
	mov	[rdi+REPLY+PAYLOAD_H], r13
	mov	r13, rbp
11:	mov	edx, PORT_EMIT
	lea	eax, [edi+REPLY]
	out	dx, eax
	jmp	9b

	.balign	8, 0x90
decay:	.double	0.75
