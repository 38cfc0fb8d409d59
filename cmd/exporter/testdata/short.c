/* Connects to ADDRESS PORT, sends one octet, reads until the other end closes, and ends: a process of a millisecond. */
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	char buf[256];
	int fd;

	if (argc != 3)
		return 2;
	to.sin_port = htons(atoi(argv[2]));
	inet_pton(AF_INET, argv[1], &to.sin_addr);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) || write(fd, "x", 1) != 1 || shutdown(fd, SHUT_WR))
		return 1;
	while (read(fd, buf, sizeof(buf)) > 0)
		;
	return 0;
}
