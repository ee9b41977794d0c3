# Firmware of 64 KiB that only counts (16-bit reset vector, then flat 32-bit
# protected mode): each round writes the counter into DIRTY pages at 1 MiB (the
# number is at offset 0xff00 of the image, little-endian, ten as assembled); each
# round whose counter has none of the bits at 0xff04 prints it on COM1, as
# eight hex digits and a newline. If the number at 0xff08 is not zero, it then
# writes a sector of the first IDE disk that begins with the counter: sector n
# modulo 256 for the counter 256*n. It is this project's own.
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
 testl $-1,disk
 jz round
 movw $0x1f6,%dx
 movb $0xe0,%al
 outb %al,%dx
 movw $0x1f2,%dx
 movb $1,%al
 outb %al,%dx
 incl %edx # the address, lowest byte first
 movl %ebx,%eax
 shrl $8,%eax
 outb %al,%dx
 xorl %eax,%eax
 incl %edx
 outb %al,%dx
 incl %edx
 outb %al,%dx
 movw $0x1f7,%dx
 movb $0x30,%al # write sectors
 outb %al,%dx
3: inb %dx,%al
 testb $0x80,%al
 jnz 3b
 testb $8,%al
 jz 3b
 movl $0x00100000,%esi
 movl $128,%ecx
 movw $0x1f0,%dx
 rep outsl
 movw $0x1f7,%dx
4: inb %dx,%al
 testb $0x88,%al
 jnz 4b
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
mask: .long 0xff
disk: .long 0
.org 0xfff0
.code16
 ljmp $0xf000,$0
.org 0x10000
