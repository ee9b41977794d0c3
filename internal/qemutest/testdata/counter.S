# Firmware of 64 KiB that only counts (16-bit reset vector, then flat 32-bit
# protected mode): each round writes the counter into DIRTY pages at 1 MiB (the
# number is at offset 0xff00 of the image, little-endian, ten as assembled); each
# round whose counter has none of the bits at 0xff04 prints it on COM1, as
# eight hex digits and a newline. It is this project's own.
#
# as --32 counter.S -o counter.o && ld -m elf_i386 -Ttext 0xf0000 --oformat binary counter.o -o counter.bin
.code16
.globl _start
_start:
 cli
 lgdtl %cs:gdtr - _start
 movl %cr0,%eax
 orl $1,%eax
 movl %eax,%cr0
 ljmpl $8,$prot
.code32
prot:
 movw $16,%ax
 movw %ax,%ds
 movw %ax,%es
 movw %ax,%ss
 movl dirty,%ebp
 xorl %ebx,%ebx
round:
 incl %ebx
 movl $0x00100000,%edi
 movl %ebp,%ecx
1: movl %ebx,(%edi)
 addl $4096,%edi
 loop 1b
 testl mask,%ebx
 jnz round
 movl $8,%ecx
 movl %ebx,%esi
2: roll $4,%esi
 movl %esi,%eax
 andl $15,%eax
 movb hex(%eax),%al
 movw $0x3f8,%dx
 outb %al,%dx
 loop 2b
 movb $10,%al
 outb %al,%dx
 jmp round
hex: .ascii "0123456789abcdef"
.align 8 # the descriptors are marked as accessed: this is read-only memory
gdt: .quad 0
 .quad 0x00cf9b000000ffff
 .quad 0x00cf93000000ffff
gdtr: .word 23
 .long gdt
.org 0xff00
dirty: .long 10
mask: .long 0x3ff
.org 0xfff0
.code16
 ljmp $0xf000,$0
.org 0x10000
